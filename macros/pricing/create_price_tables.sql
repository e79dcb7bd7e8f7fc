{#- The tables of the price book, and the ledger of costed batches, made at the start of a run where
    they are missing: dbt works before a book has landed, and every cost is unpriced until then. -#}
{%- macro create_price_tables() -%}
    {%- if execute -%}
        {%- for statement in price_tables_ddl(target.schema, target.get('cluster')).split(';;') if statement.strip() -%}
            {%- do run_query(statement) -%}
        {%- endfor -%}
        {%- set costed_batches = api.Relation.create(
            database='', schema=target.schema, identifier='costed_batches', type='table'
        ) -%}
        {%- if load_relation(costed_batches) is none -%}
            {%- do run_query(create_costed_batches()) -%}
            {%- do adapter.cache_added(costed_batches) -%}
        {%- endif -%}
    {%- endif -%}
{%- endmacro -%}

{#- The model's own table, empty, so that int_costs__pending can name it before the first run. -#}
{%- macro create_costed_batches() -%}
    create table if not exists {{ target.schema }}.costed_batches{{ on_cluster() }}
    (
        batch_id String,
        traces UInt64,
        price_book_version LowCardinality(String),
        costed_at DateTime64(3, 'UTC')
    )
    engine = {{ ledger_engine() }}
    order by batch_id
{%- endmacro -%}

{#- llm_trace_costs is built anew, from all of llm_traces: every batch has to be read back again. -#}
{%- macro reopen_costed_batches() -%}
    {%- if execute and not is_incremental() -%}
        truncate table if exists {{ this.incorporate(path={'identifier': 'costed_batches'}) }}{{ on_cluster() }}
    {%- endif -%}
{%- endmacro -%}
