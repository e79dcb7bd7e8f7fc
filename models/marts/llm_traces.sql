{{
    config(
        materialized='distributed_incremental' if var('sharded', false) else 'incremental',
        sharding_key='cityHash64(id)',
        incremental_strategy='append',
        order_by=['organization_id', 'created_at', 'id'],
        partition_by='toYYYYMM(created_at)',
        indexes=[
            {'name': 'by_step', 'definition': 'step_id type bloom_filter(0.001) granularity 1'},
            {'name': 'by_agent', 'definition': 'agent_id type bloom_filter(0.01) granularity 1'},
            {'name': 'by_size', 'definition': 'total_tokens type minmax granularity 1'},
            {'name': 'by_landing', 'definition': 'landed_at type minmax granularity 1'},
        ],
        projections=[{'name': 'by_id', 'index': ['id']}],
        query_settings={
            'throw_on_max_partitions_per_insert_block': 0,
            'max_insert_threads': 2,
            'preferred_block_size_bytes': 16777216,
            'merge_tree_min_rows_for_concurrent_read': 1000,
            'merge_tree_min_bytes_for_concurrent_read': 16777216,
        },
        pre_hook=["{{ refuse_rebuild_of_retired() }}", "{{ reopen_batches() }}", "{{ mend_indexes() }}"],
        full_refresh=var('rebuild_llm_traces', false),
    )
}}
{# one row per trace id #}

{#- Why append and an anti-join, and no watermark: a run can be killed at any instant and repeated.
    Rows that a killed run had appended are found by their id; a batch counts as transformed only
    when transformed_batches has read every id of it back from here.

    Query settings: rows are of kilobytes, and the engine's defaults are made for narrow ones. Blocks of
    80 rows would spend their time on being handed from function to function, and a batch of less than
    240 MB would be read by one thread.

    Keys and indexes, each for a query:
      order by (organization_id, created_at, id)  usage by organization and day; every read is by organization
      by_step    the trace of a step in an organization (ids are random: a bloom filter skips almost all granules)
      by_agent   an agent's traces over time
      by_size    the largest requests
      by_landing the traces of a batch, for their costs
      by_id      a trace by its id, and the anti-join below: a projection, since a bloom filter is no
                 help against ten thousand ids at once -#}

with

pending as (
    select * from {{ ref('int_traces__pending') }}
),

traces as (
    select * from {{ ref('int_traces__billed') }}
    {%- if is_incremental() %}
    where id not in (select id from {{ this }} where id in (select id from pending))
    {%- endif %}
),

final as (
    select
        -- the columns of the original backend
        id,
        organization_id::LowCardinality(String) as organization_id,
        project_id,
        agent_id,
        agent_tags::Array(LowCardinality(String)) as agent_tags,
        run_id,
        step_id,
        trace_id,
        call_type::LowCardinality(String) as call_type,
        provider::LowCardinality(String) as provider,
        model::LowCardinality(String) as model,
        is_byok,
        request_size_bytes,
        response_size_bytes,
        prompt_tokens,
        completion_tokens,
        total_tokens,
        cached_input_tokens,
        cache_write_tokens,
        reasoning_tokens,
        latency_ms,
        is_error,
        error_type,
        error_message,
        request_json,
        response_json,
        llm_config_json,
        billing_plan_type,
        billing_cost_source,
        billing_customer_id,
        created_at,

        -- how the response was read
        `format`::LowCardinality(String) as `format`,
        usage_dialect::LowCardinality(String) as usage_dialect,
        usage_status::LowCardinality(String) as usage_status,
        response_model,
        service_tier,
        cache_write_5m_tokens,
        cache_write_1h_tokens,
        input_audio_tokens,
        output_audio_tokens,
        input_image_tokens,
        output_image_tokens,
        input_video_tokens,
        output_video_tokens,
        cached_audio_tokens,
        cached_image_tokens,
        cached_video_tokens,
        billed_input_tokens,
        billed_output_tokens,
        side_prompt_tokens,
        side_completion_tokens,
        side_cached_input_tokens,
        side_cache_write_tokens,
        side_cache_write_1h_tokens,
        other_model_tokens,
        citation_tokens,
        longest_prompt_tokens,
        web_search_requests,
        provider_reported_cost_usd,
        provider_upstream_cost_usd,
        error_class,
        finish_reason,
        finish_reason_raw,
        unrecognised_keys,
        billing_source::LowCardinality(String) as billing_source,

        -- where the row comes from
        has_derived_id,
        batch_id,
        position,
        landed_at,
        now64(3, 'UTC') as transformed_at,
        '{{ parser_version() }}'::LowCardinality(String) as parser_version
    from traces
)

select * from final
