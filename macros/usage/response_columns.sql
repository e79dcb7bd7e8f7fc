{#- The columns parse_responses() adds: name -> expression over its last CTE, in contract order. -#}
{% macro response_columns() %}
{%- set unread = "parse_dialect = 'none'" -%}
{#- What a token-counting endpoint answers within an envelope. -#}
{%- set counted_only = "not parse_is_generated and arrayAll(path -> arrayElement(splitByChar('.', path), -1) in (" ~ sql_texts(usage_dialects().flat_in_pairs) ~ ") and position(path, 'usage.') = 0, parse_unknown_keys)" -%}
{#- Where no known place holds one, the first finish reason anywhere. -#}
{%- set ending = "nullIf(arrayFirst(reason -> reason not in ('', 'null'), [ifNull(parse_finish, ''), extract(if(parse_finish is null, parse_body, ''), '\"(?:finish_reason|finishReason|FinishReason|stop_reason|stopReason)\"\\\\s*:\\\\s*(?:\\\\{\"[a-z]+\"\\\\s*:\\\\s*)?\"([A-Za-z_-]+)\"')]), '')" -%}
{#- A line of a batch's output: its body names the tier of no batch. -#}
{%- set batch_lines = [] -%}
{%- for key, path in usage_dialects().batch_lines -%}
    {%- do batch_lines.append("JSONHas(parse_envelope, '" ~ key ~ "') and JSONHas(parse_envelope, " ~ sql_texts(path.split('.')) ~ ")") -%}
{%- endfor -%}
{%- set batch_tier = "if(" ~ batch_lines | join(' or ') ~ ", 'batch', null)" -%}
{#- LangChain names the tier by the counts that it puts under it. -#}
{%- set counted_tier = "arrayFirst(tier -> arrayExists(name -> parse_texts[concat('in.', name)] not in ('', 'null', '0'), [tier, concat(tier, '_cache_read')]), ['flex', 'priority'])" -%}
{#- Anthropic names the standard tier beside a fast answer, which has prices of its own. -#}
{%- set fast_tier = "if(parse_texts['speed'] = '\"fast\"', 'fast', null)" -%}
{{ return({
    'prompt_tokens': 'toInt64(parse_input)',
    'completion_tokens': 'toInt64(parse_output)',
    'total_tokens': "if(parse_dialect = 'none', 0, toInt64(greatest(parse_total, parse_input + parse_output)))",
    'cached_input_tokens': 'if(' ~ unread ~ ', null, if(parse_zero_is_unknown, nullIf(parse_n_cached, 0), parse_n_cached))',
    'cache_write_tokens': 'if(' ~ unread ~ ', null, if(parse_zero_is_unknown, nullIf(parse_n_written, 0), parse_n_written))',
    'reasoning_tokens': 'if(' ~ unread ~ ', null, parse_n_reasoning)',
    'is_error': 'CAST(parse_is_error, \'Bool\')',
    'error_type': "if(parse_is_error, nullIf(parse_error_type, ''), null)",
    'error_message': "if(parse_is_error, nullIf(substringUTF8(ifNull(parse_error_message, ''), 1, 1000), ''), null)",
    'usage_dialect': 'parse_dialect',
    'usage_status': "multiIf("
        ~ "parse_dialect != 'none' and notEmpty(parse_ranked), 'reported', parse_dialect != 'none', 'empty', "
        ~ "parse_is_found = 0 and parse_is_valid = 0 and parse_readable = '', if(parse_body = '', 'absent', 'unparsable'), "
        ~ "notEmpty(parse_keys) and (hasAny(parse_keys, [" ~ sql_texts(usage_dialects().flat_in_pairs) ~ "]) and not parse_is_generated or position(parse_text, '\"category_scores\"') > 0), 'not_applicable', "
        ~ "has(parse_keys, 'usage_info'), 'other_units', "
        ~ "notEmpty(parse_unknown_keys), if(" ~ counted_only ~ ", 'not_applicable', 'unrecognised'), "
        ~ "parse_countless_text != '', if(match(parse_countless_text, ':\\\\s*\"?[0-9]*[1-9]'), 'other_units', 'empty'), "
        ~ "JSONHas(parse_text, 'usage'), if(JSONType(parse_text, 'usage') = 'Null', 'null', 'empty'), "
        ~ "JSONHas(parse_text, 'response', 'usage'), if(JSONType(parse_text, 'response', 'usage') = 'Null', 'null', 'empty'), "
        ~ "JSONHas(parse_text, 'usageMetadata'), if(JSONType(parse_text, 'usageMetadata') = 'Null', 'null', 'empty'), "
        ~ "JSONHas(parse_text, 'usage_metadata'), if(JSONType(parse_text, 'usage_metadata') = 'Null', 'null', 'empty'), "
        ~ "'absent')",
    'response_model': "nullIf(coalesce(nullIf(parse_first.model, ''), nullIf(parse_second.model, ''), parse_first.modelVersion, parse_second.modelVersion, parse_first.model_version, parse_second.model_version, parse_first.model_name, parse_second.model_name), '')",
    'service_tier': "nullIf(lower(coalesce("
        ~ batch_tier ~ ", " ~ fast_tier ~ ", nullIf(" ~ counted_tier ~ ", ''), "
        ~ "nullIf(nullIf(trimBoth(parse_texts['service_tier'], '\"'), ''), 'null'), nullIf(nullIf(trimBoth(parse_texts['serviceTier'], '\"'), ''), 'null'), "
        ~ "parse_first.service_tier, parse_second.service_tier, "
        ~ "if(startsWith(ifNull(parse_first.serviceTier, ''), '{'), JSONExtractString(ifNull(parse_first.serviceTier, ''), 'type'), parse_first.serviceTier), "
        ~ "transform(trimBoth(concat(parse_texts['trafficType'], parse_texts['traffic_type']), '\"'), ['0', '1', '2', 'null', 'TRAFFIC_TYPE_UNSPECIFIED', 'ON_DEMAND_PRIORITY', 'ON_DEMAND_FLEX'], ['', 'on_demand', 'provisioned_throughput', '', '', 'priority', 'flex']))), '')",
    'cache_write_5m_tokens': "parse_counts['written_5m']",
    'cache_write_1h_tokens': "parse_counts['written_1h']",
    'input_audio_tokens': "parse_counts['input_audio']",
    'output_audio_tokens': "parse_counts['output_audio']",
    'input_image_tokens': "coalesce(parse_counts['input_image'], parse_counts['billed_image'])",
    'output_image_tokens': "parse_counts['output_image']",
    'input_video_tokens': "parse_counts['input_video']",
    'output_video_tokens': "parse_counts['output_video']",
    'cached_audio_tokens': "parse_counts['cached_audio']",
    'cached_image_tokens': "parse_counts['cached_image']",
    'cached_video_tokens': "parse_counts['cached_video']",
    'billed_input_tokens': 'parse_n_billed_input',
    'billed_output_tokens': "parse_counts['billed_output']",
    'side_prompt_tokens': "nullIf(parse_side_usage['side_prompt_tokens'], 0)",
    'side_completion_tokens': "nullIf(parse_side_usage['side_completion_tokens'], 0)",
    'side_cached_input_tokens': "nullIf(parse_side_usage['side_cached_input_tokens'], 0)",
    'side_cache_write_tokens': "nullIf(parse_side_usage['side_cache_write_tokens'], 0)",
    'side_cache_write_1h_tokens': "nullIf(parse_side_usage['side_cache_write_1h_tokens'], 0)",
    'other_model_tokens': "nullIf(parse_side_usage['other_model_tokens'], 0)",
    'citation_tokens': "parse_counts['citation']",
    'longest_prompt_tokens': "nullIf(parse_side_usage['longest_prompt_tokens'], 0)",
    'web_search_requests': "coalesce(parse_counts['web_search'], "
        ~ "toInt64OrNull(parse_first.tool_usage.web_search.num_requests), "
        ~ "nullIf(toInt64(countEqual(parse_items, 'web_search_call')), 0), "
        ~ "nullIf(toInt64(length(arrayFlatten(arrayConcat(parse_first.candidates.groundingMetadata.webSearchQueries, parse_first.candidates.grounding_metadata.web_search_queries)))), 0))",
    'provider_reported_cost_usd': "coalesce(" ~ as_usd('parse_cost') ~ ", CAST(toDecimal128OrNull(parse_safe_ticks, 2) * toDecimal128('0.0000000001', 10), 'Nullable(Decimal(18, 12))'))",
    'provider_upstream_cost_usd': as_usd("trimBoth(parse_texts['cost_details.upstream_inference_cost'], '\"')"),
    'error_class': "if(parse_is_error, " ~ error_class_of("concat('| ', ifNull(parse_error_type, ''), ' | ', ifNull(coalesce(parse_fault_inner.code, parse_fault_outer.code), ''), ' | ', ifNull(parse_error_message, ''), ' | ', ifNull(parse_fault_outer.status, ''), ' | ', extract(if(parse_is_error, parse_body, ''), '\"(?:[a-z_]*status_?(?:code)?|[a-zA-Z]*Status(?:Code)?|statusCode)\"\\\\s*:\\\\s*\"?([45][0-9]{2})\\\\b'), ' | ')") ~ ", null)",
    'finish_reason': "if(parse_finish = 'completed' and arrayLast(item -> item not in ('', 'reasoning'), parse_items) in ('function_call', 'custom_tool_call'), 'tool_calls', " ~ finish_reason_of(ending) ~ ")",
    'finish_reason_raw': ending,
    'unrecognised_keys': 'if(' ~ counted_only ~ ', [], arraySlice(parse_unknown_keys, 1, 100))',
}) }}
{% endmacro %}
