{#- The tables of seeds that were never loaded, empty, so that `dbt run` works on a fresh store. They
    are filled by `dbt seed` or `dbt build`. -#}
{%- macro create_seed_tables() -%}
    {%- if execute -%}
        {%- for seed in graph.nodes.values() if seed.resource_type == 'seed' -%}
            {%- set relation = api.Relation.create(
                database='', schema=seed.schema, identifier=seed.alias, type='table'
            ) -%}
            {%- if load_relation(relation) is none -%}
                {%- set columns = [] -%}
                {%- for column in seed.columns.values() -%}
                    {%- do columns.append('`' ~ column.name ~ '` ' ~ column.data_type) -%}
                {%- endfor -%}
                {%- do run_query(
                    'create table if not exists ' ~ relation ~ on_cluster() ~ ' (' ~ columns | join(', ')
                    ~ ') engine = ' ~ ledger_engine() ~ ' order by tuple()'
                ) -%}
                {%- do adapter.cache_added(relation) -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
