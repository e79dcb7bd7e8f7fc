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

{#- on-run-start: a version that never landed would leave every call without a price, and one that
    has lost rows since would price some by others. -#}
{%- macro refuse_unfit_book() -%}
    {%- if execute and flags.WHICH in ('run', 'build') -%}
        {%- set books = run_query(
            'select price_book_version, any(prices), any(rules), price_book_version = ' ~ chosen_price_book()
            ~ ', (select count() from ' ~ source('prices', 'raw_prices')
            ~ ' where price_book_version = ' ~ chosen_price_book() ~ ')'
            ~ ', (select count() from ' ~ source('prices', 'raw_price_rules')
            ~ ' where price_book_version = ' ~ chosen_price_book() ~ ')'
            ~ ' from ' ~ source('prices', 'raw_price_books') ~ ' group by price_book_version order by price_book_version'
        ).rows -%}
        {%- set chosen = books | selectattr(3) | first -%}
        {%- if var('price_book_version', none) and not chosen -%}
            {{ exceptions.raise_compiler_error(
                'price_book_version is ' ~ var('price_book_version') ~ ', and no such price book has landed. There '
                ~ ('are: ' ~ books | map(attribute=0) | join(', ') if books else 'is none: run python -m loader prices')
                ~ '.'
            ) }}
        {%- endif -%}
        {%- if chosen and (chosen[1], chosen[2]) != (chosen[4], chosen[5]) -%}
            {{ exceptions.raise_compiler_error(
                'The price book ' ~ chosen[0] ~ ' is not whole: ' ~ chosen[4] ~ ' of ' ~ chosen[1] ~ ' prices and '
                ~ chosen[5] ~ ' of ' ~ chosen[2] ~ ' rules are in the store. Run python -m loader prices, which lands '
                ~ 'the installed one anew, or set price_book_version to another that has landed.'
            ) }}
        {%- endif -%}
    {%- endif -%}
{%- endmacro -%}

{#- llm_trace_costs is built anew by a book by which not everything was matched yet: what was not would
    be left out of history. -#}
{%- macro refuse_unmatched_book() -%}
    {%- if execute and flags.FULL_REFRESH -%}
        {%- set unmatched = run_query(
            "select uniqExact(provider, model, coalesce(response_model, '')) from " ~ ref('llm_traces')
            ~ " where (provider::String, model::String, coalesce(response_model, '')::String) not in"
            ~ ' (select provider::String, model::String, response_model::String from ' ~ ref('llm_price_matches')
            ~ ' where price_book_version = ' ~ chosen_price_book() ~ ')'
        ).rows[0][0] | int -%}
        {%- if unmatched > 0 -%}
            {{ exceptions.raise_compiler_error(
                'llm_trace_costs cannot be built anew: ' ~ unmatched ~ ' models were not matched by the chosen price '
                ~ 'book yet. Run dbt run --select llm_price_matches first, with --full-refresh if that does not help.'
            ) }}
        {%- endif -%}
    {%- endif -%}
{%- endmacro -%}

{#- llm_trace_costs is built anew, from all of llm_traces: every batch has to be read back again. -#}
{%- macro reopen_costed_batches() -%}
    {%- if execute and not is_incremental() -%}
        truncate table if exists {{ this.incorporate(path={'identifier': 'costed_batches'}) }}{{ on_cluster() }}
    {%- endif -%}
{%- endmacro -%}
