{#- The tables that the verbs billing and bills fill, made where they are missing, so that dbt works
    without subscriptions and bills. The loader makes them from the same definition. -#}
{%- macro create_billing_tables() -%}
    {%- if execute -%}
        {%- for statement in billing_tables_ddl(target.schema, target.get('cluster')).split(';;') if statement.strip() -%}
            {%- do run_query(statement) -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
