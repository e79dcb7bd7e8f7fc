{#- The tables that the loader fills, made at the start of a run where they are missing, so that dbt
    works before anything has landed. The loader makes them from the same definition. -#}
{%- macro create_raw_tables() -%}
    {%- if execute -%}
        {%- for statement in raw_tables_ddl(target.schema).split(';;') if statement.strip() -%}
            {%- do run_query(statement) -%}
        {%- endfor -%}
        {%- do run_query(create_transformed_batches()) -%}
    {%- endif -%}
{%- endmacro -%}
