{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        order_by=['organization_id', 'id', 'batch_id', 'position'],
        full_refresh=false,
    )
}}
{# one row per arrival of an id that was already known with another payload #}

{#- Looked for while a batch is pending: transformed_batches waits for this model, and takes the
    same batches. So a full refresh could not find again what is here, and does not touch it. -#}

with

pending as (
    select batch_id from {{ ref('int_batches__due') }}
),

{# What was erased and lands again within a run is left out, and deleted by the next one. #}

erased as (
    select * from ({{ erased_positions() | indent(8) }})
    where batch_id in (select batch_id from pending)
),

arrived as (
    select
        id,
        organization_id,
        batch_id,
        position,
        landed_at,
        sipHash64(request_json) as request_hash,
        sipHash64(response_json) as response_hash,
        {{ envelope_hash('trace_plan_type', 'trace_cost_source', 'trace_customer_id') }}
            as envelope_hash
    from {{ ref('int_traces__unioned') }}
    where
        batch_id in (select batch_id from pending)
        and (batch_id, position) not in (
            select
                batch_id,
                position
            from erased
        )
        and id in (
            select id
            from {{ ref('int_traces__unioned') }}
            where batch_id in (select batch_id from pending)
            group by id
            having uniqExact(batch_id, position) > 1

            union all

            select id
            from {{ ref('llm_traces') }}
            where
                batch_id not in (select batch_id from pending)
                and id in (
                    select id
                    from {{ ref('int_traces__unioned') }}
                    where batch_id in (select batch_id from pending)
                )
        )
    limit 1 by batch_id, position
),

kept as (
    select
        id,
        organization_id as kept_organization_id,
        batch_id as kept_batch_id,
        position as kept_position,
        sipHash64(request_json) as kept_request_hash,
        sipHash64(response_json) as kept_response_hash,
        request_json = '' and request_size_bytes > 0 as is_request_retired,
        response_json = '' and response_size_bytes > 0 as is_response_retired,
        billing_source = 'trace' as has_own_billing,
        {{ envelope_hash(
            'if(has_own_billing, billing_plan_type, null)',
            'if(has_own_billing, billing_cost_source, null)',
            'if(has_own_billing, billing_customer_id, null)'
        ) }} as kept_envelope_hash
    from {{ ref('llm_traces') }}
    where id in (select id from arrived)
),

conflicts as (
    select
        arrived.id as id,
        arrived.organization_id as organization_id,
        arrived.batch_id as batch_id,
        arrived.position as position,
        kept.kept_batch_id as kept_batch_id,
        kept.kept_position as kept_position,
        {# Another organization learns no more: who sends guesses would learn which is right. #}
        if(
            arrived.organization_id != kept.kept_organization_id,
            ['organization'],
            arrayFilter(
                part -> part != '',
                [
                    {# A payload that was retired cannot be compared any more. #}
                    if(
                        arrived.request_hash != kept.kept_request_hash
                        and not kept.is_request_retired,
                        'request', ''
                    ),
                    if(
                        arrived.response_hash != kept.kept_response_hash
                        and not kept.is_response_retired,
                        'response', ''
                    ),
                    if(arrived.envelope_hash != kept.kept_envelope_hash, 'envelope', '')
                ]
            )
        ) as differs_in,
        arrived.landed_at as landed_at
    from arrived
    inner join kept on arrived.id = kept.id
    where (arrived.batch_id, arrived.position) != (kept.kept_batch_id, kept.kept_position)
),

final as (
    select
        id,
        organization_id,
        batch_id,
        position,
        kept_batch_id,
        kept_position,
        differs_in,
        landed_at
    from conflicts
    where
        notEmpty(differs_in)
        {%- if is_incremental() %}
        and (id, batch_id, position) not in (
            select
                id,
                batch_id,
                position
            from {{ this }}
        )
        {%- endif %}
)

select * from final
