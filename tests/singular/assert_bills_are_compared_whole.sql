{#- Every dollar of the bills that hold is in the comparison by model, and every one of ours on the
    days that bills are for. -#}

with

compared as (
    select
        sum(theirs_usd) as compared_theirs,
        sum(ours_usd) as compared_ours
    from {{ ref('provider_bill_reconciliation') }}
    where level = 'model'
),

billed as (
    select sum(amount_usd) as billed_usd from {{ ref('stg_bills__lines') }}
),

charged as (
    select sum(amount_usd) as charged_usd from {{ ref('int_costs__by_utc_day') }}
    where
        usage_date between
        (select min(usage_date) from {{ ref('stg_bills__lines') }})
        and (select max(usage_date) from {{ ref('stg_bills__lines') }})
),

final as (
    select * from compared
    cross join billed
    cross join charged
    where
        coalesce(compared_theirs, 0) != coalesce(billed_usd, 0)
        or coalesce(compared_ours, 0) != coalesce(charged_usd, 0)
)

select * from final
