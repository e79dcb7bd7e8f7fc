{#- Conservation, tokens: what is charged and what lacks a price cover the prompt and the
    completion (those that are billed, where a provider says so) and what the call's own model used
    besides, once each. Left out: calls whose provider reports parts larger than the whole. -#}

with

costs as (
    select
        id,
        arrayConcat(
            arrayMap(charge -> (charge.unit, charge.quantity), charges), unpriced_units
        ) as used
    from {{ ref('llm_trace_costs') }}
    where cost_status in ('priced', 'partly_priced', 'unpriced')
),

covered as (
    select
        id,
        arraySum(bucket -> bucket.2 * match(bucket.1, '^(input|cache)'), used) as input_covered,
        arraySum(bucket -> bucket.2 * match(bucket.1, '^(output|reasoning)'), used)
            as output_covered
    from costs
),

traces as (
    select
        id,
        greatest(coalesce(billed_input_tokens, prompt_tokens), 0)
        + coalesce(side_prompt_tokens, 0)
            as billed_prompt,
        greatest(coalesce(billed_output_tokens, completion_tokens), 0)
        + coalesce(side_completion_tokens, 0)
            as billed_completion
    from {{ ref('llm_traces') }}
    where
        coalesce(cached_input_tokens, 0) + coalesce(cache_write_tokens, 0) <= prompt_tokens
        and usage_status = 'reported'
),

final as (
    select
        traces.id,
        traces.billed_prompt,
        traces.billed_completion,
        covered.input_covered,
        covered.output_covered
    from traces
    inner join covered on traces.id = covered.id
    where
        traces.billed_prompt != covered.input_covered
        or traces.billed_completion != covered.output_covered
)

select * from final
