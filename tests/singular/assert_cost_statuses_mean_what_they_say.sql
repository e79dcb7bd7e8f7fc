{#- Unknown is never zero: which status goes with a total, a zero, and units without a price. -#}

with

costs as (
    select * from {{ ref('llm_trace_costs') }}
),

final as (
    select
        id,
        cost_status,
        total_cost_usd,
        billable_cost_usd,
        unpriced_units
    from costs
    where
        (cost_status in ('priced', 'partly_priced', 'provider_reported') and total_cost_usd is null)
        or (cost_status = 'unpriced' and total_cost_usd is not null)
        or (cost_status = 'no_usage' and total_cost_usd != 0)
        or (cost_status = 'partly_priced' and (empty(unpriced_units) or empty(charges)))
        or (cost_status = 'priced' and notEmpty(unpriced_units))
        or (is_byok and coalesce(billable_cost_usd, 1) != 0)
        or (not is_byok and billable_cost_usd is distinct from total_cost_usd)
)

select * from final
