{#- Print who spent what on which model: dbt --quiet run-operation who_spent_what -#}
{%- macro who_spent_what() -%}
    {%- set answer = run_query(who_spent_what_sql()) -%}
    {%- do answer.print_table(max_rows=none, max_columns=none, max_column_width=32, max_precision=6) -%}
{%- endmacro -%}

{#- Costs are of list prices, whoever pays; an amount is null where no price is known. -#}
{%- macro who_spent_what_sql() -%}
with

models as (
    select
        organization_id as organization,
        provider,
        model,
        sum(calls) as calls,
        sum(errors) as errors,
        sum(prompt_tokens) as prompt,
        sum(cached_input_tokens) as cached,
        sum(completion_tokens) as completion,
        round(sum(total_cost_usd), 4) as list_usd,
        round(sum(billable_cost_usd), 4) as billable_usd,
        sum(unpriced_calls) as unpriced
    from {{ target.schema }}.llm_costs_daily
    group by organization, provider, model
)

select * from models
order by organization, list_usd desc nulls last, provider, model
{%- endmacro -%}
