{#- The version of the price book to price by: the variable price_book_version, else the last that
    landed. '' when none has. -#}
{%- macro chosen_price_book() -%}
    {%- if var('price_book_version', none) -%}
'{{ var('price_book_version') | replace("\\", "\\\\") | replace("'", "\\'") }}'
    {%- else -%}
(select argMax(price_book_version, landed_at) from {{ source('prices', 'raw_price_books') }})
    {%- endif -%}
{%- endmacro -%}
