{#- What llm_traces does before it builds. -#}

{#- llm_traces is built anew (it was rebuilt on purpose, or dropped by hand): every batch has to be
    transformed again, so none may count as done, and what it cost by the rows before is no cost of
    it. Left as they are otherwise. -#}
{%- macro reopen_batches() -%}
    {%- if execute and not is_incremental() -%}
        {#- dbt looked at what there is before it waited for another run. -#}
        {%- if not should_full_refresh() and run_query(
            'select count() from system.tables where database = ' ~ sql_text(this.schema) ~ ' and name = ' ~ sql_text(this.identifier)
        ).rows[0][0] | int > 0 -%}
            {{ exceptions.raise_compiler_error(
                'another run has made ' ~ this.identifier ~ ' since this one began, and nothing was done: run it again.'
            ) }}
        {%- endif -%}
        {#- The ledger before what it counts, for a run that is killed between, and once more behind it, for one that
            sleeps there while another fills both. -#}
        {%- for name in ['transformed_batches', 'costed_batches', 'llm_trace_costs', 'costed_batches'] -%}
            {%- if not loop.last -%}{%- do keep_run_lock() -%}{%- endif -%}
            {%- do run_query('truncate table if exists ' ~ this.incorporate(path={'identifier': name}) ~ on_cluster()) -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}

{#- on-run-start, and of operations: dbt swaps in a rebuilt llm_traces that is sharded by four renames. Killed
    between two it leaves one of the pair. The part on a shard is the one that was there then, as dbt drops what it
    set aside; what spans the shards is made anew, as without it dbt would append to the part what it holds. -#}
{%- macro end_swap() -%}
    {%- if var('sharded', false) -%}
        {%- set spanning = api.Relation.create(database='', schema=target.schema, identifier='llm_traces', type='table') -%}
        {%- set local = spanning.incorporate(path={'identifier': 'llm_traces_local'}) -%}
        {%- set former = spanning.incorporate(path={'identifier': 'llm_traces_local__dbt_backup'}) -%}
        {%- set there = {} -%}
        {%- for row in run_query(
            'select name, engine from system.tables where database = ' ~ sql_text(target.schema) ~ " and startsWith(name, 'llm_traces')"
        ).rows -%}
            {%- do there.update({row[0]: row[1]}) -%}
        {%- endfor -%}
        {%- if spanning.identifier in there and local.identifier not in there -%}
            {%- if there['llm_traces'] != 'Distributed' -%}
                {{ refuse(
                    spanning ~ ' was built whole, and holds its rows itself: `sharded` is set before the first run. Take it off; do not drop the table.'
                ) }}
            {%- elif former.identifier not in there -%}
                {{ refuse(
                    'there is ' ~ spanning ~ ', and no ' ~ local ~ ' here, which holds its rows. Make it on this server as it is on the '
                    ~ 'others; or, where it is gone from all of them, drop table ' ~ spanning ~ on_cluster() ~ ' and run again, which builds it anew.'
                ) }}
            {%- endif -%}
            {%- do run_query('rename table ' ~ former ~ ' to ' ~ local ~ on_cluster()) -%}
            {%- do adapter.cache_dropped(former) -%}
            {%- if load_relation(local) is none -%}
                {%- do adapter.cache_added(load_relation(spanning).incorporate(path={'identifier': local.identifier})) -%}
            {%- endif -%}
        {%- elif local.identifier in there and spanning.identifier not in there -%}
            {%- do run_query(
                'create table ' ~ spanning ~ on_cluster() ~ ' as ' ~ local ~ " engine = Distributed('" ~ target.cluster ~ "', '" ~ local.schema
                ~ "', '" ~ local.identifier ~ "', " ~ graph.nodes['model.' ~ project_name ~ '.llm_traces'].config.sharding_key ~ ')'
            ) -%}
            {%- if load_relation(spanning) is none -%}
                {%- do adapter.cache_added(load_relation(local).incorporate(path={'identifier': spanning.identifier})) -%}
            {%- endif -%}
        {%- endif -%}
        {%- for name in ['llm_traces_temp', 'llm_traces__dbt_backup'] if there.get(name) == 'Distributed' -%}
            {%- set left = spanning.incorporate(path={'identifier': name}) -%}
            {%- do run_query('drop table if exists ' ~ left ~ on_cluster() ~ ' sync') -%}
            {%- do adapter.cache_dropped(left) -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}

{#- dbt creates a table first and its indexes in a statement of their own: a run killed between the
    two leaves a table without. Adding them again where they are missing costs nothing. -#}
{%- macro mend_indexes() -%}
    {%- if execute and is_incremental() -%}
        alter table {{ storage_of(this) }}{{ on_cluster() }}
        {%- for projection in config.get('projections', []) %}
        add {{ clickhouse_projection_ddl(projection) | replace('PROJECTION ', 'projection if not exists ') }},
        {%- endfor %}
        {%- for index in config.get('indexes', []) %}
        add index if not exists {{ index.name }} {{ index.definition }}
        {%- if not loop.last %},{% endif %}
        {%- endfor %}
    {%- endif -%}
{%- endmacro -%}

{#- The model's own table, empty, so that int_batches__pending can name it before the first run. -#}
{%- macro create_transformed_batches() -%}
    create table if not exists {{ target.schema }}.transformed_batches{{ on_cluster() }}
    (
        batch_id String,
        rows UInt32,
        ids UInt64,
        new_traces UInt64,
        first_landed_at DateTime64(3, 'UTC'),
        parser_version LowCardinality(String),
        transformed_at DateTime64(3, 'UTC')
    )
    engine = {{ ledger_engine() }}
    order by batch_id
{%- endmacro -%}
