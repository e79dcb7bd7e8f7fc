{#- Whether a row of llm_trace_costs has no cost, or less than all of it. -#}
{%- macro lacks_price(costs) -%}
{{ costs }}.total_cost_usd is null or {{ costs }}.cost_status = 'partly_priced'
{%- endmacro -%}
