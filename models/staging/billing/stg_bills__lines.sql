{# one row per line of the bill that holds for a provider, account and period #}

{#- Of a period that was billed more than once, the last known bill holds, all of its lines. Where
    it has none any more, one row without an amount says so. -#}

with

source as (
    select * from {{ source('billing', 'raw_provider_bills') }}
),

in_force as (
    select
        provider,
        account,
        starts_at,
        argMax(content_hash, (known_at, content_hash)) as content_hash
    from source
    group by
        provider,
        account,
        starts_at
),

lines as (
    select * from source
    where
        (provider, account, starts_at, content_hash) in (select * from in_force)
        and amount_text != ''
    -- Two loaders that raced on one file, and a bill that was landed again to hold again.
    limit 1 by provider, account, starts_at, content_hash, position
),

-- A line item in words, such as `gpt-4.1-2025-04-14, cached input`, names the model and, after the
-- last comma, what of it is charged.
worded as (
    select
        *,
        extractGroups(line_item, '^([^\\s,]+), ([^,]+)$') as words
    from lines
),

units as (
    select * from {{ ref('bill_units') }}
),

final as (
    select
        -- whose, and when
        worded.provider as provider,
        worded.account as account,
        toDate32(worded.starts_at, 'UTC') as usage_date,
        worded.starts_at as starts_at,
        worded.ends_at as ends_at,

        -- what
        if(worded.model != '' or empty(worded.words), worded.model, worded.words[1]) as model,
        units.unit as unit,
        worded.line_item as line_item,
        worded.project as project,
        worded.service_tier as service_tier,

        -- how much
        worded.amount_usd as amount_usd,

        -- landing
        worded.`format` as `format`,
        worded.position as position,
        worded.known_at as known_at
    from worded
    left join units
        on
            multiIf(
                worded.unit != '', worded.unit,
                notEmpty(worded.words), worded.words[2],
                worded.line_item
            ) = units.code
)

select * from final
