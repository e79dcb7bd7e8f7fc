{#- The columns of a model's contract, in order; with cast, each turned into its type there. -#}
{%- macro contract_columns(model_name, cast=false) -%}
    {%- if not execute -%}
        {{ return('*') }}
    {%- endif -%}
    {%- set selected = [] -%}
    {%- for column in graph.nodes['model.' ~ project_name ~ '.' ~ model_name].columns.values() -%}
        {%- set typed = column.name ~ '::' ~ column.data_type ~ ' as ' ~ column.name -%}
        {%- do selected.append(typed if cast else column.name) -%}
    {%- endfor -%}
    {{ return(selected | join(',\n        ')) }}
{%- endmacro -%}
