{#
Retention: raw rows, rejects and payloads older than so many days are deleted; tokens, errors,
billing and costs live on. Off until the variables say otherwise:

    retain_raw_days       rows of raw_traces, by when their batch landed
    retain_reject_days    rows of raw_rejects, by when their batch landed
    retain_payload_days   request_json and response_json of llm_traces, by created_at

    dbt run-operation retire --args '{dry_run: true}'     what would go
    dbt run-operation retire                              let it go

Only batches that count as transformed lose their raw rows. What goes is recorded in
retired_batches first, so that a killed run is completed by the next, and the conservation tests stay
true. A partition of which all is old is dropped; of others the old rows are deleted by a mutation.
What `mend` needs stays until it has run: a damaged store is refused, and batches stay that lost raw
rows, or a trace, of which the raw row is the only copy then.
-#}
{%- macro retire(dry_run=false) -%}
    {%- set raw_days = _retention_days('retain_raw_days') -%}
    {%- set reject_days = _retention_days('retain_reject_days') -%}
    {%- set payload_days = _retention_days('retain_payload_days') -%}
    {%- if raw_days is none and reject_days is none and payload_days is none -%}
        {%- do print('nothing to retire: none of retain_raw_days, retain_reject_days, retain_payload_days is set') -%}
        {{ return('') }}
    {%- endif -%}
    {%- if raw_days is not none and load_relation(ref('llm_traces')) is none -%}
        {{ exceptions.raise_compiler_error('retire: there is no llm_traces: raw_traces has the only copy of all traces. Run dbt run first.') }}
    {%- endif -%}
    {%- if not dry_run -%}
        {%- do refuse_broken_parts() -%}
        {%- do take_run_lock() -%}
        {%- do end_what_was_begun() -%}
    {%- endif -%}
    {%- do create_raw_tables() -%}
    {%- do create_operations_tables() -%}
    {%- if not dry_run -%}
        {%- do reopen_what_came_again() -%}
        {#- What a killed one left. -#}
        {%- do drop_leftovers("startsWith(name, 'retire_kept_')") -%}
    {%- endif -%}
    {%- if raw_days is not none -%}
        {%- do _retire_raw('raw_traces', raw_days, dry_run) -%}
    {%- endif -%}
    {%- if reject_days is not none -%}
        {%- do _retire_raw('raw_rejects', reject_days, dry_run) -%}
    {%- endif -%}
    {%- if payload_days is not none -%}
        {%- do _retire_payloads(payload_days, dry_run) -%}
    {%- endif -%}
    {%- if not dry_run -%}{%- do free_run_lock() -%}{%- endif -%}
{%- endmacro -%}

{#- Batches of which all rows of a raw table were retired, as they are in the ledger now: a select of batch_id.
    One that was lost since and landed again has rows again. It was landed by its loader's clock, and is
    retired by the store's a day later at least: half a day between the two tells which came first. The
    first row of the ledger says when: later ones add to `continues`. The loader asks by the same rule
    (_refuse_lost of loader/landing.py): change both. -#}
{%- macro whole_retired(raw_table) -%}
select batch_id
from (
    select
        batch_id,
        retired_at as noted_at,
        true as is_retirement
    from {{ source('operations', 'retired_batches') }}
    where raw_table = '{{ raw_table }}' and is_whole

    union all

    select
        batch_id,
        landed_at as noted_at,
        false as is_retirement
    from {{ source('raw', 'raw_batches') }}
)
group by batch_id
having maxIf(noted_at, is_retirement) > minIf(noted_at, not is_retirement) + interval 12 hour
{%- endmacro -%}

{#- A variable of days: none when unset, an error when it is no whole number above 0. -#}
{%- macro _retention_days(name) -%}
    {%- set value = var(name, none) -%}
    {%- if value is none or value == '' -%}{{ return(none) }}{%- endif -%}
    {%- if not (value | string).isdigit() or value | int < 1 -%}
        {{ exceptions.raise_compiler_error(name ~ ' is ' ~ value ~ ': it has to be a whole number of days above 0.') }}
    {%- endif -%}
    {{ return(value | int) }}
{%- endmacro -%}

{#- The batches whose rows of a raw table landed long enough ago to go: a select of batch_id. Of one that
    mend took out of the ledger, rows that are still there say when it landed. -#}
{%- macro _old_batches(raw_table, before) -%}
    select batch_id
    from (
        select batch_id, landed_at from {{ source('raw', 'raw_batches') }}
        union all
        select batch_id, landed_at from {{ source('raw', raw_table) }}
        where
            batch_id in (select batch_id from {{ source('raw', 'raw_lost_batches') }})
            and batch_id not in (select batch_id from {{ source('raw', 'raw_batches') }})
    )
    where
        landed_at < fromUnixTimestamp64Milli({{ before }}, 'UTC')
        {{ _and_transformed(raw_table) }}
{%- endmacro -%}

{#- What is pending keeps its raw rows. -#}
{%- macro _and_transformed(raw_table) -%}
    {%- if raw_table == 'raw_traces' -%}
        and batch_id in (select batch_id from {{ ref('transformed_batches') }})
    {%- endif -%}
{%- endmacro -%}

{#- Of batches that are to lose their rows, those that mend has to see first: that lost rows, or of which a
    trace is missing from llm_traces. -#}
{%- macro _to_be_mended(raw_table, batches) -%}
    {{ short_batches(batches) }}
    {%- if raw_table == 'raw_traces' %}
    {#- Looked for by id, as the anti-join of llm_traces is. -#}
    {%- set arrived %}
        select id, batch_id from {{ ref('int_traces__unioned') }}
        where
            batch_id in ({{ batches }})
            and (batch_id, position) not in ({{ erased_positions() }})
    {%- endset %}
    union distinct
    select batch_id from ({{ arrived }})
    where id not in (select id from {{ ref('llm_traces') }} where id in (select id from ({{ arrived }})))
    {%- endif -%}
{%- endmacro -%}

{#- A table of those, which the caller drops. They are looked for a million rows at a time, in the order of
    landing: the ids of all that may go need not be in memory at once. -#}
{%- macro _list_kept(raw_table, batches) -%}
    {%- set kept = api.Relation.create(database='', schema=target.schema, identifier='retire_kept_' ~ local_md5(invocation_id ~ raw_table)) -%}
    {%- do run_query(
        'create table ' ~ kept ~ on_cluster() ~ ' (batch_id String) engine = ' ~ ledger_engine() ~ ' order by batch_id settings ' ~ durable()
    ) -%}
    {%- set sliced = 'select batch_id, intDiv(sum(size) over (order by first_landed_at, batch_id), 1000000) as slice from ('
        ~ 'select batch_id, any(`rows`) + any(rejects) + 1 as size, min(landed_at) as first_landed_at from (' ~ batches
        ~ ') as looked_at left join ' ~ source('raw', 'raw_batches') ~ ' as ledger using (batch_id) group by batch_id)' -%}
    {%- for row in run_query('select distinct slice from (' ~ sliced ~ ') order by slice').rows -%}
        {%- set within = 'select batch_id from (' ~ sliced ~ ') where slice = ' ~ row[0] -%}
        {%- do run_query('insert into ' ~ kept ~ ' (batch_id) select distinct batch_id from (' ~ _to_be_mended(raw_table, within) ~ ')') -%}
    {%- endfor -%}
    {{ return(kept) }}
{%- endmacro -%}

{%- macro _retire_raw(raw_table, days, dry_run) -%}
    {%- set table = source('raw', raw_table) -%}
    {#- One time for all statements: what was not looked at is not to be deleted. -#}
    {%- set before = run_query("select toUnixTimestamp64Milli(now64(3, 'UTC') - interval " ~ days ~ " day)").rows[0][0] | int -%}
    {%- set whole = whole_retired(raw_table) -%}
    {%- set new = 'select batch_id from (' ~ _old_batches(raw_table, before) ~ ') where batch_id not in (' ~ whole ~ ')' -%}
    {#- A batch that was recorded may have been landed or reopened since. -#}
    {%- set going = 'select batch_id from (' ~ whole ~ ') where true ' ~ _and_transformed(raw_table) -%}
    {%- set kept = _list_kept(raw_table, new ~ ' union distinct ' ~ going) -%}
    {%- set kept_count = run_query('select uniqExact(batch_id) from ' ~ kept).rows[0][0] | int -%}
    {%- if kept_count > 0 -%}
        {%- do print(raw_table ~ ': keeping ' ~ kept_count ~ ' batches that lost rows or traces, which may be needed to bring these back. Run mend first: dbt run-operation mend') -%}
    {%- endif -%}
    {%- set due = '(batch_id in (' ~ new ~ ') or batch_id in (' ~ going ~ ')) and batch_id not in (select batch_id from ' ~ kept ~ ')' -%}
    {%- set size = 'sum(length(raw))' if raw_table == 'raw_rejects'
        else 'sum(length(request_json) + length(response_json) + length(envelope_json))' -%}
    {%- set report = run_query(
        "select '" ~ raw_table ~ "' as `table`, count() as `rows`, uniqExact(batch_id) as batches, "
        ~ size ~ " as bytes, min(landed_at) as oldest, max(landed_at) as newest from " ~ table
        ~ " where " ~ due
    ) -%}
    {%- do print((raw_table ~ ': ') ~ ('would retire' if dry_run else 'retiring') ~ ' what landed more than ' ~ days ~ ' days ago') -%}
    {%- do report.print_table(max_columns=none, max_column_width=40) -%}
    {%- if not dry_run -%}
        {#- What is recorded now is deleted, by the record alone: what is asked of the raw table goes on when this
            is killed, and is not to be asked of what has changed since. -#}
        {%- set retired = source('operations', 'retired_batches') -%}
        {%- set retired_at = "fromUnixTimestamp64Milli(" ~ run_query("select toUnixTimestamp64Milli(now64(3, 'UTC'))").rows[0][0] | int ~ ", 'UTC')" -%}
        {%- do run_query(
            "insert into " ~ retired ~ " (batch_id, raw_table, reason, is_whole, positions, retired_at)"
            ~ " select distinct batch_id, '" ~ raw_table ~ "', 'retention', true, [], " ~ retired_at ~ " from " ~ table
            ~ " where " ~ due
        ) -%}
        {%- set going = "select batch_id from " ~ retired ~ " where raw_table = '" ~ raw_table ~ "' and reason = 'retention' and retired_at = " ~ retired_at -%}
        {%- set old_partitions = run_query(
            "select toString(toYYYYMM(landed_at)) as partition from " ~ table
            ~ " group by partition having countIf(batch_id not in (" ~ going ~ ")) = 0"
            ~ " and partition < toString(toYYYYMM(now()))"
        ) -%}
        {%- for row in old_partitions.rows -%}
            {%- do run_query('alter table ' ~ storage_of(table) ~ on_cluster() ~ " drop partition id '" ~ row[0] ~ "'") -%}
        {%- endfor -%}
        {%- if run_query("select 1 from " ~ table ~ " where batch_id in (" ~ going ~ ") limit 1").rows | length > 0 -%}
            {%- do run_and_wait(
                'alter table ' ~ storage_of(table) ~ on_cluster() ~ ' delete where batch_id in (' ~ going ~ ')'
            ) -%}
        {%- endif -%}
    {%- endif -%}
    {%- do drop_helper(kept.identifier) -%}
{%- endmacro -%}

{%- macro _retire_payloads(days, dry_run) -%}
    {%- set is_old = "created_at < now64(6, 'UTC') - interval " ~ days ~ " day"
        ~ " and (request_json != '' or response_json != '')" -%}
    {%- set report = run_query(
        "select 'llm_traces' as `table`, count() as `rows`, sum(length(request_json) + length(response_json)) as bytes,"
        ~ " min(created_at) as oldest, max(created_at) as newest from " ~ ref('llm_traces') ~ " where " ~ is_old
    ) -%}
    {%- do print('llm_traces: ' ~ ('would empty' if dry_run else 'emptying') ~ ' request_json and response_json of calls made more than ' ~ days ~ ' days ago') -%}
    {%- do report.print_table(max_columns=none, max_column_width=40) -%}
    {%- if not dry_run -%}
        {%- set months = run_query(
            "select toString(toYYYYMM(created_at)) as partition, max(created_at) < now64(6, 'UTC') - interval "
            ~ days ~ " day as is_all_old from " ~ ref('llm_traces') ~ " where toYYYYMM(created_at) in"
            ~ " (select distinct toYYYYMM(created_at) from " ~ ref('llm_traces') ~ " where " ~ is_old ~ ") group by partition"
        ) -%}
        {%- for row in months.rows -%}
            {%- if row[1] | int -%}
                {%- do run_and_wait('alter table ' ~ storage_of(ref('llm_traces')) ~ on_cluster()
                    ~ " clear column request_json in partition id '" ~ row[0] ~ "',"
                    ~ " clear column response_json in partition id '" ~ row[0] ~ "'") -%}
            {%- else -%}
                {%- do run_and_wait('alter table ' ~ storage_of(ref('llm_traces')) ~ on_cluster()
                    ~ " update request_json = '', response_json = '' in partition id '" ~ row[0] ~ "' where " ~ is_old) -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}

{#- The table that holds a relation's rows here: the relation itself, or its part on this shard. -#}
{%- macro storage_of(relation) -%}
    {%- set local = relation.incorporate(path={'identifier': relation.identifier ~ '_local'}) -%}
    {{ return(local if var('sharded', false) and load_relation(local) is not none else relation) }}
{%- endmacro -%}

{#- pre_hook of llm_traces: a rebuild would lose what raw_traces no longer holds, on purpose or not. -#}
{%- macro refuse_rebuild_of_retired() -%}
    {%- if execute and not is_incremental() and not var('rebuild_without_retired', false) -%}
        {%- set gone = run_query(
            "select count(), min(landed_at), max(landed_at) from " ~ source('raw', 'raw_batches')
            ~ " where batch_id in (" ~ whole_retired('raw_traces') ~ ")"
        ) -%}
        {%- if gone.rows[0][0] | int > 0 -%}
            {{ exceptions.raise_compiler_error(
                'llm_traces cannot be built anew: the raw rows of ' ~ gone.rows[0][0] ~ ' batches, landed from '
                ~ gone.rows[0][1] ~ ' to ' ~ gone.rows[0][2] ~ ', have been retired, and their traces are only in '
                ~ 'llm_traces. To read history by new rules use the operation reparse; to restore a table, a backup. '
                ~ 'To go on and lose these traces: --vars "rebuild_without_retired: true".'
            ) }}
        {%- endif -%}
        {%- if load_relation(this) is not none -%}
            {#- A batch that mend took out of the ledger is built of what is left of it. -#}
            {%- set landed = 'select batch_id from ' ~ source('raw', 'raw_batches') -%}
            {%- set built = landed ~ ' union all select batch_id from ' ~ source('raw', 'raw_lost_batches') -%}
            {%- set suspects = '(batch_id not in (' ~ landed ~ ') or batch_id in (' ~ short_batches() ~ '))' -%}
            {#- Not by ref, as llm_traces is not built from it itself. -#}
            {%- set arrivals = this.incorporate(path={'identifier': 'int_traces__unioned'}) -%}
            {%- set trace = 'id, organization_id::String, request_size_bytes, response_size_bytes' -%}
            {%- set lost = run_query(
                'select count() from ' ~ this ~ ' where ' ~ suspects ~ ' and (' ~ trace ~ ') not in (select ' ~ trace
                ~ ' from ' ~ arrivals ~ ' where batch_id in (' ~ built ~ ') and id in (select id from ' ~ this ~ ' where ' ~ suspects ~ '))'
            ).rows[0][0] | int -%}
            {%- if lost > 0 -%}
                {{ exceptions.raise_compiler_error(
                    'llm_traces cannot be built anew: ' ~ lost ~ ' of its traces are in no raw row any more, and only in '
                    ~ 'llm_traces. Land their sources again, which dbt run-operation mend names, or restore a backup. '
                    ~ 'To go on and lose these traces: --vars "rebuild_without_retired: true".'
                ) }}
            {%- endif -%}
        {%- endif -%}
    {%- endif -%}
{%- endmacro -%}
