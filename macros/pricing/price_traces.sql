{#
What each of a set of traces costs by the chosen price book: the body of a `with` that ends in
`costed`, so that the mart and the comparison with another book are one text.

1. measured:  the tokens of a call in disjoint buckets, each with the units it can be charged as, the
              most specific first: what has no price of its own is charged as what it is a kind of.
2. matched:   the prices of the model it was matched with, before them those that override the book.
              What was not matched by this book yet is left out, and waits: a book may land between
              the two models.
3. current:   of those, the ones that hold at the call's time, for a prompt of its size.
4. charged:   each bucket with the first of these that is of its unit, and what it comes to.

Arguments: traces, a relation with costed_columns(); matches, the relation of llm_price_matches.
#}
{%- macro price_traces(traces, matches) -%}
traces as (
    select
        *,
        coalesce(response_model, '') as answering_model,
        {{ price_tier('service_tier') }} as price_tier,
        -- Where a provider says what it bills, that is not said of its cached part.
        if(billed_input_tokens is null, greatest(coalesce(cached_input_tokens, 0), 0), 0)
            + coalesce(side_cached_input_tokens, 0) as cached,
        greatest(coalesce(cache_write_tokens, 0), 0) + coalesce(side_cache_write_tokens, 0)
            as written,
        greatest(coalesce(cache_write_1h_tokens, 0), 0)
            + coalesce(side_cache_write_1h_tokens, 0) as written_1h_told,
        greatest(coalesce(cache_write_5m_tokens, 0), 0)
            + coalesce(side_cache_write_tokens, 0) - coalesce(side_cache_write_1h_tokens, 0)
            as written_5m_told
    from {{ traces }}
),

matches as (
    select
        provider::String as seen_provider,
        model as seen_model,
        response_model as seen_answer,
        price_book_version,
        match_status,
        price_provider,
        price_model,
        is_fallback
    from {{ matches }}
    where price_book_version = {{ chosen_price_book() }}
    limit 1 by provider, model, response_model
),

book_rates as (
    select
        price_provider as book_provider,
        price_model as book_model,
        price_tier as rates_tier,
        rates as book_rates
    from {{ ref('int_prices__rates') }}
    where price_book_version = {{ chosen_price_book() }}
),

unsold_tiers as (
    select groupArray((price_provider, model, service_tier)) as tiers
    from {{ ref('unsold_service_tiers') }}
),

overrides as (
    select
        matches.seen_provider as for_provider,
        matches.seen_model as for_model,
        matches.seen_answer as for_answer,
        prices.organization_id as for_organization,
        -- A price of the standard tier is also that of the tiers that are not sold for the model.
        arrayJoin(
            if(
                prices.service_tier = '',
                arrayConcat(
                    [''],
                    arrayMap(
                        unsold -> unsold.3,
                        arrayFilter(
                            unsold ->
                                unsold.1 = matches.price_provider
                                and unsold.2 = matches.price_model
                                and not matches.is_fallback,
                            (select tiers from unsold_tiers)
                        )
                    )
                ),
                [prices.service_tier]
            )
        ) as for_tier,
        arraySort(
            -- One for the tier itself goes first. Of two that hold at once the later one, as with
            -- subscriptions.
            rate -> (
                rate.precedence,
                -toInt64(rate.tier_start),
                -toUnixTimestamp64Micro(rate.valid_from),
                rate.price_id
            ),
            groupArray(
                {{ price_tuple("if(prices.organization_id = '', 1, 0)", "toUInt32(if(prices.window_start = '' and empty(prices.weekdays), 2, 1) + if(prices.service_tier = for_tier, 0, 2))") }}
            )
        ) as override_rates
    from matches
    cross join {{ ref('stg_prices__overrides') }} as prices
    where
        prices.provider in ('', lower(matches.seen_provider), matches.price_provider)
        and (
            {{ price_rule_holds('lower(matches.seen_model)', 'prices.model_operator', 'prices.model') }}
            or {{ price_rule_holds('lower(matches.seen_answer)', 'prices.model_operator', 'prices.model') }}
            or {{ price_rule_holds('lower(matches.price_model)', 'prices.model_operator', 'prices.model') }}
        )
    group by
        for_provider,
        for_model,
        for_answer,
        for_organization,
        for_tier
),

organization_overrides as (
    select * from overrides
    where for_organization != ''
),

general_overrides as (
    select * from overrides
    where for_organization = ''
),

matched as (
    select
        traces.*,
        price_book_version,
        match_status,
        price_provider,
        price_model,
        -- Another provider's models are here by fallback: its service tiers are not.
        if(is_fallback and price_tier != '', 'none', price_tier) as book_tier
    from traces
    inner join matches
        on
            traces.provider::String = matches.seen_provider
            and traces.model::String = matches.seen_model
            and traces.answering_model = matches.seen_answer
),

measured as (
    select
        matched.*,
        arrayConcat(
            organization_overrides.override_rates,
            general_overrides.override_rates,
            book_rates.book_rates
        ) as all_rates,
        positiveModulo(toUnixTimestamp64Second(created_at), 86400) as utc_second,
        toUInt8(toDayOfWeek(created_at)) as utc_weekday,
        coalesce(longest_prompt_tokens, prompt_tokens) as longest_prompt,
        greatest(coalesce(billed_input_tokens, prompt_tokens), 0)
            + coalesce(side_prompt_tokens, 0) as prompt,
        greatest(coalesce(billed_output_tokens, completion_tokens), 0)
            + coalesce(side_completion_tokens, 0) as completion,
        -- Parts larger than the whole are the same tokens, written and read at once.
        greatest(
            prompt - if(cached + written > prompt, greatest(cached, written), cached + written), 0
        ) as uncached,
        least(greatest(coalesce(cached_audio_tokens, 0), 0), cached) as cached_audio_told,
        least(greatest(coalesce(cached_image_tokens, 0), 0), cached) as cached_image_told,
        least(greatest(coalesce(cached_video_tokens, 0), 0), cached) as cached_video_told,
        least(greatest(coalesce(input_audio_tokens, 0), cached_audio_told), prompt) as audio_in,
        least(greatest(coalesce(input_image_tokens, 0), cached_image_told), prompt - audio_in)
            as image_in,
        least(
            greatest(coalesce(input_video_tokens, 0), cached_video_told),
            prompt - audio_in - image_in
        ) as video_in,
        least(greatest(coalesce(output_audio_tokens, 0), 0), completion) as audio_out,
        least(greatest(coalesce(output_image_tokens, 0), 0), completion - audio_out) as image_out,
        least(greatest(coalesce(output_video_tokens, 0), 0), completion - audio_out - image_out)
            as video_out,
        least(written_1h_told, written) as written_1h,
        least(written_5m_told, written - written_1h) as written_5m
    from matched
    left join organization_overrides
        on
            matched.organization_id::String = organization_overrides.for_organization
            and matched.provider::String = organization_overrides.for_provider
            and matched.model::String = organization_overrides.for_model
            and matched.answering_model = organization_overrides.for_answer
            and matched.price_tier = organization_overrides.for_tier
    left join general_overrides
        on
            matched.provider::String = general_overrides.for_provider
            and matched.model::String = general_overrides.for_model
            and matched.answering_model = general_overrides.for_answer
            and matched.price_tier = general_overrides.for_tier
    left join book_rates
        on
            matched.price_provider::String = book_rates.book_provider
            and matched.price_model = book_rates.book_model
            and matched.book_tier = book_rates.rates_tier
),

current_rates as (
    select
        *,
        arrayFilter(
            rate ->
                rate.valid_from <= created_at
                and created_at < rate.valid_to
                and (
                    longest_prompt > rate.tier_start
                    or (rate.is_tier_start_inclusive and longest_prompt = rate.tier_start)
                )
                and {{ rate_window_holds('rate') }},
            all_rates
        ) as current_rates,
        current_rates.unit as units
    from measured
),

bucketed as (
    select
        *,
        -- What is not told to be cached of sound, pictures and video is looked for in the uncached
        -- part of the prompt first.
        least(greatest(audio_in - cached_audio_told, 0), uncached) as uncached_audio,
        least(greatest(image_in - cached_image_told, 0), uncached - uncached_audio)
            as uncached_image,
        least(
            greatest(video_in - cached_video_told, 0), uncached - uncached_audio - uncached_image
        ) as uncached_video,
        least(audio_in - uncached_audio, cached) as cached_audio,
        least(image_in - uncached_image, cached - cached_audio) as cached_image,
        least(video_in - uncached_video, cached - cached_audio - cached_image) as cached_video,
        completion - audio_out - image_out - video_out as text_out,
        if(
            has(units, 'output_reasoning_tokens'),
            least(greatest(coalesce(reasoning_tokens, 0), 0), text_out),
            0
        ) as reasoning,
        arrayFilter(
            bucket -> bucket.2 > 0,
            [
                (
                    'input_tokens',
                    uncached - uncached_audio - uncached_image - uncached_video,
                    ['input_tokens']
                ),
                (
                    'cached_input_tokens',
                    cached - cached_audio - cached_image - cached_video,
                    ['cache_read_tokens', 'input_tokens']
                ),
                (
                    'cache_write_tokens',
                    written - written_5m - written_1h,
                    ['cache_write_tokens', 'input_tokens']
                ),
                (
                    'cache_write_5m_tokens',
                    written_5m,
                    ['cache_write_5m_tokens', 'cache_write_tokens', 'input_tokens']
                ),
                -- Where writing has a price, an hour's has one of its own, and it is higher.
                (
                    'cache_write_1h_tokens',
                    written_1h,
                    if(
                        has(units, 'cache_write_tokens'),
                        ['cache_write_1h_tokens'],
                        ['cache_write_1h_tokens', 'input_tokens']
                    )
                ),
                ('input_audio_tokens', uncached_audio, ['input_audio_tokens', 'input_tokens']),
                (
                    'cached_audio_tokens',
                    cached_audio,
                    ['cache_audio_read_tokens', 'cache_read_tokens', 'input_tokens']
                ),
                ('input_image_tokens', uncached_image, ['input_image_tokens', 'input_tokens']),
                (
                    'cached_image_tokens',
                    cached_image,
                    ['cache_image_read_tokens', 'cache_read_tokens', 'input_tokens']
                ),
                ('input_video_tokens', uncached_video, ['input_video_tokens', 'input_tokens']),
                (
                    'cached_video_tokens',
                    cached_video,
                    ['cache_video_read_tokens', 'cache_read_tokens', 'input_tokens']
                ),
                ('output_tokens', text_out - reasoning, ['output_tokens']),
                ('reasoning_tokens', reasoning, ['output_reasoning_tokens']),
                ('output_audio_tokens', audio_out, ['output_audio_tokens', 'output_tokens']),
                ('output_image_tokens', image_out, ['output_image_tokens', 'output_tokens']),
                ('output_video_tokens', video_out, ['output_video_tokens', 'output_tokens']),
                (
                    'citation_tokens',
                    greatest(coalesce(citation_tokens, 0), 0),
                    ['output_citation_tokens']
                ),
                (
                    'web_searches',
                    greatest(coalesce(web_search_requests, 0), 0),
                    ['web_searches']
                ),
                -- A total above its parts: tokens that were used, and of which nobody says what they are.
                (
                    'uncounted_tokens',
                    coalesce(total_tokens, 0) - greatest(prompt_tokens, 0)
                    - greatest(completion_tokens, 0),
                    []
                ),
                ('other_model_tokens', coalesce(other_model_tokens, 0), []),
                -- A fee for the call itself, where the book has one, certain or not.
                (
                    'requests',
                    toInt64(
                        hasAny(units, ['requests', 'uncertain requests'])
                        and usage_status = 'reported'
                    ),
                    ['requests']
                )
            ]::Array(Tuple(String, Int64, Array(String)))
        ) as buckets
    from current_rates
),

placed as (
    select
        *,
        arrayMap(
            bucket -> indexOf(units, arrayFirst(unit -> has(units, unit), bucket.3)),
            buckets
        ) as places,
        arrayFilter((bucket, place) -> place > 0, buckets, places) as priced_buckets,
        arrayMap(
            place -> current_rates[place],
            arrayFilter(place -> place > 0, places)
        ) as used_rates,
        arrayMap(
            bucket -> (bucket.1, bucket.2),
            arrayFilter((bucket, place) -> place = 0, buckets, places)
        ) as without_price
    from bucketed
),

charged as (
    select
        *,
        arrayMap(
            (bucket, unit_price) -> (
                bucket.1,
                bucket.2,
                unit_price,
                round(toDecimal256(unit_price, 24) * bucket.2, 12)
            ),
            priced_buckets,
            used_rates.unit_price_usd
        ) as amounts,
        arraySum(charge -> charge.4, amounts) as total,
        multiIf(
            -- No call costs a million dollars: such a count is no count.
            total >= 1000000, 'unpriced',
            empty(buckets) and usage_status = 'reported' and has(units, 'input_tokens'), 'priced',
            empty(buckets) and (is_error or usage_status != 'reported'), 'no_usage',
            empty(priced_buckets), 'unpriced',
            notEmpty(without_price), 'partly_priced',
            'priced'
        ) as list_status,
        {{ cost_told('provider_reported_cost_usd', 'provider_upstream_cost_usd') }} as told,
        -- A 0 beside the customer's own key says what the provider charged us: no price.
        if(told > 0 or not is_byok, told, null) as told_cost
    from placed
),

judged as (
    select
        *,
        multiIf(
            list_status in ('priced', 'partly_priced'), list_status,
            told_cost is not null, 'provider_reported',
            list_status
        ) as cost_status
    from charged
),

costed as (
    select
        id,
        organization_id,
        created_at,
        provider,
        model,
        is_byok,
        cost_status,
        -- Cast after the choice: a count that is no count has a total that would not fit.
        cast(
            multiIf(
                cost_status in ('priced', 'partly_priced'),
                toNullable(total),
                cost_status = 'provider_reported',
                toDecimal256(told_cost, 24),
                cost_status = 'no_usage'
                and (
                    usage_status = 'not_applicable'
                    or (is_error and usage_status not in ('unrecognised', 'unparsable', 'other_units'))
                ),
                toNullable(toDecimal256(0, 24)),
                null
            ),
            'Nullable(Decimal(18, 12))'
        ) as total_cost_usd,
        cast(if(is_byok, toDecimal64(0, 12), total_cost_usd), 'Nullable(Decimal(18, 12))')
            as billable_cost_usd,
        provider_reported_cost_usd,
        cast(
            multiIf(
                cost_status in ('priced', 'partly_priced'),
                amounts,
                cost_status = 'provider_reported',
                [(
                    'provider_reported',
                    toInt64(1),
                    toDecimal128(assumeNotNull(told_cost), 24),
                    toDecimal256(assumeNotNull(told_cost), 24)
                )],
                []
            ),
            '{{ charges_type() }}'
        ) as charges,
        cast(
            multiIf(
                cost_status = 'partly_priced',
                without_price,
                cost_status in ('unpriced', 'provider_reported'),
                arrayMap(bucket -> (bucket.1, bucket.2), buckets),
                []
            ),
            'Array(Tuple(unit String, quantity Int64))'
        ) as unpriced_units,
        multiIf(
            cost_status in ('priced', 'partly_priced'),
            used_rates.price_id,
            cost_status = 'provider_reported',
            [''],
            []
        ) as price_ids,
        price_book_version,
        match_status,
        price_provider,
        price_model,
        price_tier,
        if(
            cost_status in ('priced', 'partly_priced') and notEmpty(price_ids),
            arrayMax(used_rates.tier_start),
            0
        )::UInt64 as tier_start,
        if(
            cost_status in ('priced', 'partly_priced') and notEmpty(price_ids),
            arrayMax(used_rates.valid_from),
            null
        ) as price_valid_from,
        batch_id
    from judged
)
{%- endmacro -%}

{%- macro charges_type() -%}
Array(Tuple(unit String, quantity Int64, unit_price_usd Decimal(38, 24), amount_usd Decimal(18, 12)))
{%- endmacro -%}
