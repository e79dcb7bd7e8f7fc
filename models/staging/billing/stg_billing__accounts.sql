{# one row per organization and instant from which it is billed in a way #}

{#- Of what was said for one instant, the last known holds. Of two files that name one `known_at`
    the one that landed later does, and of two lines of one file the later line. What is left equal
    is decided by the hash. -#}

with

source as (
    select * from {{ source('billing', 'raw_billing_accounts') }}
),

in_force as (
    select
        organization_id,
        valid_from,
        argMax(
            (plan_type, cost_source, customer_id),
            (source.known_at, landed_at, line, content_hash)
        ) as terms,
        max(source.known_at) as known_at
    from source
    group by
        organization_id,
        valid_from
),

renamed as (
    select
        -- who, and from when
        organization_id,
        valid_from,

        -- how
        terms.1 as plan_type,
        terms.2 as cost_source,
        terms.3 as customer_id,

        -- landing
        known_at
    from in_force
)

select * from renamed
