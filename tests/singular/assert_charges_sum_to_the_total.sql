{#- Conservation, money: the charges of a trace sum to its total exactly, each is its quantity times
    its price, and a total without charges is 0 or unknown. -#}

with

costs as (
    select * from {{ ref('llm_trace_costs') }}
),

final as (
    select
        id,
        cost_status,
        total_cost_usd,
        charges
    from costs
    where
        arraySum(charge -> charge.amount_usd, charges) != coalesce(total_cost_usd, 0)
        or arrayExists(
            charge -> charge.amount_usd != {{ charge_amount('charge') }}, charges
        )
        or arrayExists(charge -> charge.quantity <= 0 or charge.amount_usd < 0, charges)
        or length(arrayDistinct(charges.unit)) != length(charges)
        or (cost_status in ('priced', 'partly_priced') and length(price_ids) != length(charges))
)

select * from final
