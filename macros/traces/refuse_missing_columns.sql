{#- pre_hook: what is only appended to is not looked at by on_schema_change. A column that the table has
    not would be left out of what is written, without a word. -#}
{%- macro refuse_missing_columns() -%}
    {%- if execute and is_incremental() -%}
        {%- set there = adapter.get_columns_in_relation(this) | map(attribute='name') | list -%}
        {%- set missing = model.columns.keys() | reject('in', there) | list -%}
        {%- if missing -%}
            {{ exceptions.raise_compiler_error(
                this.identifier ~ ' was made by an earlier version and has no column ' ~ missing | join(', ')
                ~ ': add it by alter table, as CHANGELOG.md says, and run again.'
            ) }}
        {%- endif -%}
    {%- endif -%}
{%- endmacro -%}
