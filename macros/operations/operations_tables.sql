{#
What the operations (retire, erase, reparse, mend) remember, in tables of their own.

- retired_batches: which raw rows are gone on purpose. Written before anything is deleted, so that a
  count of what landed stays true whenever the operation is killed.
- orphaned_costs:  of which batches costs outlived their traces, as other arrivals of these may come.
- erasures:        that something was erased, without saying what: a hash stands for the subject.
- reparse_reports: what a reparse would change, as it was looked at before it was applied.
#}

{#- on-run-start: the tables, where they are missing. -#}
{%- macro create_operations_tables() -%}
    {%- if execute -%}
        {%- for statement in operations_tables_ddl(target.schema, target.get('cluster')).split(';;') if statement.strip() -%}
            {%- do run_query(statement) -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}

{#- The statements, separated by `;;`; all idempotent, like those of raw_tables_ddl(). -#}
{%- macro operations_tables_ddl(database, cluster=none) -%}
{%- set on_cluster = (" on cluster `" ~ cluster ~ "`") if cluster else "" -%}
{%- set engine = "ReplicatedMergeTree" if cluster else "MergeTree" -%}
create table if not exists `{{ database }}`.retired_batches{{ on_cluster }}
(
    batch_id String comment 'The batch',
    raw_table LowCardinality(String) comment 'raw_traces or raw_rejects',
    reason LowCardinality(String) comment 'retention or erasure',
    is_whole Bool comment 'Whether all of its rows of that table are gone',
    positions Array(UInt32) comment 'Which rows are gone, when not all are',
    retired_at DateTime64(3, 'UTC') comment 'When it was decided; the rows went just after'
)
engine = {{ engine }}
order by (raw_table, batch_id)
settings {{ durable() }}
;;
create table if not exists `{{ database }}`.erasures{{ on_cluster }}
(
    subject_kind LowCardinality(String) comment 'organization, user, customer or agent',
    subject_hash String comment 'SHA-256 of the subject, in hex: enough to answer whether it was done',
    raw_traces UInt64 comment 'Rows deleted there',
    raw_rejects UInt64 comment 'Rows deleted there',
    traces UInt64 comment 'Rows deleted from llm_traces',
    erased_at DateTime64(3, 'UTC') comment 'When it was complete'
)
engine = {{ engine }}
order by erased_at
settings {{ durable() }}
;;
create table if not exists `{{ database }}`.orphaned_costs{{ on_cluster }}
(
    batch_id String comment 'The batch that the costs are of',
    first_created_at DateTime64(6, 'UTC') comment 'The first created_at of these costs',
    last_created_at DateTime64(6, 'UTC') comment 'The last one',
    noted_at DateTime64(3, 'UTC') comment 'When mend saw that they have no trace'
)
engine = {{ engine }}
order by batch_id
;;
create table if not exists `{{ database }}`.reparse_reports{{ on_cluster }}
(
    parser_version LowCardinality(String) comment 'The rules that were tried',
    from_time DateTime64(6, 'UTC') comment 'First created_at looked at',
    to_time DateTime64(6, 'UTC') comment 'The created_at before which it ended',
    provider LowCardinality(String) comment 'Provider of the traces',
    dialect_before LowCardinality(String) comment 'usage_dialect as stored',
    dialect_after LowCardinality(String) comment 'usage_dialect by these rules',
    traces UInt64 comment 'Traces read by other rules than these',
    changed UInt64 comment 'Of them, those that become different',
    prompt_tokens_before Int64 comment 'Sum as stored, tokens',
    prompt_tokens_after Int64 comment 'Sum by these rules, tokens',
    completion_tokens_before Int64 comment 'Sum as stored, tokens',
    completion_tokens_after Int64 comment 'Sum by these rules, tokens',
    errors_before UInt64 comment 'Failed calls as stored',
    errors_after UInt64 comment 'Failed calls by these rules',
    reported_at DateTime64(3, 'UTC') comment 'When it was looked at'
)
engine = {{ engine }}
order by (parser_version, from_time, to_time, reported_at)
{%- endmacro -%}

{#- For tables that cannot be made again from others: a part is on the disk before its insert answers. -#}
{%- macro durable() -%}
fsync_after_insert = 1, fsync_part_directory = 1
{%- endmacro -%}

{#- The ON CLUSTER clause for DDL of our own; empty without a cluster in the profile. -#}
{%- macro on_cluster() -%}
    {{ return(' on cluster `' ~ target.get('cluster') ~ '`' if target.get('cluster') else '') }}
{%- endmacro -%}

{#- The engine of tables of our own; dbt's models get theirs in dbt_project.yml, by the same rule. -#}
{%- macro ledger_engine() -%}
    {{ return('ReplicatedMergeTree' if target.get('cluster') else 'MergeTree') }}
{%- endmacro -%}

{#- Drop the tables of ours that a killed run left; the condition is on `name`. -#}
{%- macro drop_leftovers(condition) -%}
    {%- for row in run_query('select name from system.tables where database = ' ~ sql_text(target.schema) ~ ' and (' ~ condition ~ ')').rows -%}
        {%- do drop_helper(row[0]) -%}
    {%- endfor -%}
{%- endmacro -%}

{#- Copies of traces that a killed run of dbt left. -#}
{%- macro drop_copies() -%}
    {%- do drop_leftovers(
        "match(name, '__dbt_(backup|tmp|new_data.*)$') and " ~ is_of_model("splitByString('__dbt_', name)[1]")
    ) -%}
{%- endmacro -%}

{#- The condition that a table is one of this project's models, or its part on a shard: the schema may hold others. -#}
{%- macro is_of_model(table_name) -%}
    {%- set names = [] -%}
    {%- for node in graph.nodes.values() if node.resource_type == 'model' and node.package_name == project_name -%}
        {%- do names.append(sql_text(node.alias)) -%}
    {%- endfor -%}
    {{ return('replaceRegexpOne(' ~ table_name ~ ", '_local$', '') in (" ~ names | join(', ') ~ ')') }}
{%- endmacro -%}

{#- End the unfinished deletes that ask for a table. Not on the cluster, which would take rights over all of it: of a
    replicated table one replica ends it for all. -#}
{%- macro end_deletes_by(name) -%}
    {%- set is_asking = 'database = ' ~ sql_text(target.schema) ~ ' and not is_done and position(command, ' ~ sql_text(name) ~ ') > 0' -%}
    {%- if run_query('select count() from system.mutations where ' ~ is_asking).rows[0][0] | int > 0 -%}
        {%- do run_query('kill mutation where ' ~ is_asking ~ ' sync') -%}
    {%- endif -%}
{%- endmacro -%}

{#- Drop a table of ours. Deletes that ask for it outlive whoever sent them: without it they would fail for
    ever, and all that is asked of their tables after them. Who drops it sends them anew. -#}
{%- macro drop_helper(name) -%}
    {%- do end_deletes_by(name) -%}
    {%- do run_query('drop table if exists ' ~ target.schema ~ '.`' ~ name ~ '`' ~ on_cluster() ~ ' sync') -%}
{%- endmacro -%}

{#- Run a statement and wait until it has taken effect on every replica. Not where another run has taken over,
    which may have built since what this one asked for. -#}
{%- macro run_and_wait(statement) -%}
    {%- do keep_run_lock() -%}
    {%- do run_query(statement ~ ' settings mutations_sync = 2, alter_sync = 2, allow_nondeterministic_mutations = 1') -%}
{%- endmacro -%}
