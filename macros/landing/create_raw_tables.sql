{#- The tables that the loader fills, made at the start of a run where they are missing, so that dbt
    works before anything has landed. The loader makes them from the same definition. -#}
{%- macro create_raw_tables() -%}
    {%- if execute -%}
        {%- for statement in raw_tables_ddl(target.schema, target.get('cluster')).split(';;') if statement.strip() -%}
            {%- do run_query(statement) -%}
        {%- endfor -%}
        {%- set transformed_batches = api.Relation.create(
            database='', schema=target.schema, identifier='transformed_batches', type='table'
        ) -%}
        {%- if load_relation(transformed_batches) is none -%}
            {%- do run_query(create_transformed_batches()) -%}
            {%- do adapter.cache_added(transformed_batches) -%}
        {%- elif 'first_landed_at' not in adapter.get_columns_in_relation(transformed_batches) | map(attribute='name') -%}
            {#- Made by an earlier version: 1970 stands for not known. -#}
            {%- do run_query(
                'alter table ' ~ transformed_batches ~ on_cluster()
                ~ " add column if not exists first_landed_at DateTime64(3, 'UTC') after new_traces"
            ) -%}
        {%- endif -%}
    {%- endif -%}
{%- endmacro -%}
