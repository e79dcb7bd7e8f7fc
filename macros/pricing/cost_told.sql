{#- What a provider says that a call cost, of both who charged for it: with a key of the caller's own, a
    gateway's word is its fee alone, below what the provider behind it charged. -#}
{%- macro cost_told(reported, upstream) -%}
({{ reported }} + if({{ upstream }} > {{ reported }}, {{ upstream }}, 0))
{%- endmacro -%}
