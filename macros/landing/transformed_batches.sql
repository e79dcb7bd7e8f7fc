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
        {%- for name in ['transformed_batches', 'costed_batches', 'llm_trace_costs'] -%}
            {%- do run_query('truncate table if exists ' ~ this.incorporate(path={'identifier': name}) ~ on_cluster()) -%}
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
