{#- Print who spent what on which model: dbt --quiet run-operation who_spent_what -#}
{%- macro who_spent_what() -%}
    {%- set answer = run_query(who_spent_what_sql()) -%}
    {%- do answer.print_table(max_rows=none, max_columns=none, max_column_width=40) -%}
{%- endmacro -%}

{%- macro who_spent_what_sql() -%}
select
    organization_id as organization,
    provider,
    model,
    count() as calls,
    countIf(is_error) as errors,
    sum(prompt_tokens) as prompt,
    sum(cached_input_tokens) as cached,
    sum(completion_tokens) as completion,
    countIf(usage_status != 'reported' and not is_error) as no_usage
from {{ ref('llm_traces') }}
group by organization, provider, model
order by organization, prompt + completion desc, provider, model
{%- endmacro -%}
