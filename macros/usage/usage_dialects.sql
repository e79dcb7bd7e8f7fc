{#-
The dialects as data: where usage stands in a response, which keys carry which count, and which
keys decide the dialect. parse_responses() turns this into SQL; docs/dialects says it in prose.

A provider that speaks a known dialect needs no line here. A new dialect is an entry under
`dialects`, its keys under `counts`, rows in the unit tests and a page in docs/dialects.

usage_names    keys of the body that hold a usage object, best first. When the body has none, its
               objects are walked breadth first, four levels down, to the first that has one: that
               covers every envelope (`response.usage` of an event, `metadata`, `delta`, `x_groq`,
               `response.body` of a batch, `result`, …) without naming it.
mixed_names    keys of objects that may hold counts among other things; tried after usage_names.
count_words    an object is taken to hold counts when a member with one of these words in its name is
               a number or an object; names of counts without any are added here.
not_walked     keys the walk and the search for unknown counts never enter: content, requests,
               configuration, and repeats of a usage that must not be counted again.
walked_arrays  arrays of events or generations: the walk looks into their last element.
walked_texts   strings that hold a body as JSON text, as gateways forward it: walked like objects.
flat           keys of counts that stand in the body itself.
flat_in_pairs  the same, but only beside an output count or a key of flat_beside (what embeddings
               and rerank answer): alone they are what a token-counting endpoint answers, which is
               no consumption.
generated      keys that hold what a model wrote, as a text or a list with something in it: beside
               them a count that no rule reads is no token-counting endpoint's answer.
batch_lines    what a line of a batch's output has beside each other, [key, path]: the body in it names
               the tier of no batch.
parts          objects inside a usage object: `part.key` below is `key` in any of them; objects inside
               those are named so themselves, as `in.cached_tokens_details`.
lists          arrays inside a usage object: `part.label` is the count of the element so labelled.
counts         count -> keys, best first. The first positive one is taken, else the first reported.
dialects       name -> deciding keys. The first dialect fits of which one of `any` is reported, one
               of `with`, and none of `without`; `provider` narrows it to those providers.
               cache: outside      the prompt as reported leaves cached and written tokens out
               reasoning: outside  the completion as reported leaves reasoning tokens out
               zero_cache: unknown a cache count of 0 means "not used" and becomes null
               A total that settles what lies outside overrules `cache`.
-#}
{% macro usage_dialects() %}
{% set text %}
usage_names: [usage, usageMetadata, usage_metadata, token_usage, tokenUsage, meta, last_token_usage,
              totalUsage, total_usage, tokenMetadata, Usage]

mixed_names: [amazon-bedrock-invocationMetrics, metrics, stats, details]

count_words: [token, eval_count, prompt_n, predicted_n]

not_walked: [content, contents, candidates, input, inputs, messages, tools, tool_calls,
             tool_choice, arguments, request, prompt, text, parts, embedding, embeddings, tool_usage,
             usage_breakdown, iterations, settings, config, generation_config, generationConfig,
             parameters, params, schema, logprobs, citations, instructions, tokenizer, llm_config,
             rate_limits, rateLimits, limits, headers, context_details, modelInvocationInput,
             generation_settings, default_generation_settings, hyperparameters, parsed, token]

walked_arrays: [events, chunks, stream, responses, generations, outputs, output, choices, meta]

walked_texts: [body, string, data]

flat: [prompt_eval_count, eval_count, prompt_token_count, generation_token_count,
       inputTextTokenCount, totalOutputTextTokenCount, num_tokens_prompt_total, num_tokens_generated,
       tokens_evaluated, tokens_predicted, generated_token_count, generated_tokens,
       output_token_count, outputTokenCount, output_tokens, outputTokens, completion_tokens,
       completionTokens, candidatesTokenCount, candidates_token_count, thoughtsTokenCount,
       num_output_tokens, predicted_n, nb_generated_tokens, tokens_generated]

flat_in_pairs: [input_tokens, inputTokens, prompt_tokens, promptTokens, total_tokens, totalTokens,
                totalTokenCount, promptTokenCount, input_token_count, inputTokenCount,
                num_input_tokens, token_count, nb_input_tokens, tokens_input]

flat_beside: [embeddings, embedding, results, rankings]

generated: [choices, candidates, text, content, output, outputs, output_text, completion, completions,
            generation, generations, generated_text, response, answer, reply, result]

batch_lines: [[custom_id, response.body], [batch_request_id, batch_result], [recordId, modelOutput],
              [processed_time, response], [key, response.candidates]]

parts:
  in: [prompt_tokens_details, input_tokens_details, input_token_details, prompt_token_details,
       promptTokensDetails, inputTokensDetails, inputTokenDetails, promptTokenDetails, inputTokens,
       input_tokens, inputTokenCount]
  out: [completion_tokens_details, output_tokens_details, output_token_details,
        completion_token_details, completionTokensDetails, outputTokensDetails, outputTokenDetails,
        completionTokenDetails, outputTokens, output_tokens, outputTokenCount]
  tokens: [tokens]
  token_count: [token_count]
  billed: [billed_units, billedUnits]
  written: [cache_creation, in.cache_creation_token_details]
  cached: [in.cached_tokens_details, in.cachedTokensDetails]
  details: [details]
  text: [text]
  tools: [server_tool_use, server_tool_use_details, server_side_tool_usage_details, serverToolUse,
          serverToolUsage, connectors]
  cost: [cost]
  cost_details: [cost_details]
  gateway: [pydantic_ai_gateway]

lists:
  in: [promptTokensDetails, prompt_tokens_details, promptTokenDetails, input_tokens_by_modality]
  out: [candidatesTokensDetails, candidates_tokens_details, responseTokensDetails,
        response_tokens_details, output_tokens_by_modality]
  written: [cacheDetails]
  cached: [cacheTokensDetails, cache_tokens_details, cached_tokens_by_modality]

counts:
  prompt: [tokens.input_tokens, tokens.inputTokens, token_count.prompt_tokens, prompt_tokens, promptTokens, input_tokens, inputTokens, in.total,
           in.totalTokens, promptTokenCount, prompt_token_count, total_input_tokens,
           inputTokenCount, input_token_count, inputTextTokenCount, prompt_eval_count,
           num_tokens_prompt_total, tokens_evaluated, num_input_tokens, prompt_n,
           predictions_token_count, results_input_token_count, request_tokens, nb_input_tokens,
           tokens_input, input_count, promptTokensCount, prompt_tokens_count, PromptTokens, text.prompt_tokens,
           inputTextTokens, input_length, prefill_token_count]
  completion: [tokens.output_tokens, tokens.outputTokens, token_count.response_tokens,
               completion_tokens, completionTokens,
               output_tokens, outputTokens, out.total, out.totalTokens, candidatesTokenCount,
               responseTokenCount, candidates_token_count, response_token_count,
               total_output_tokens, generation_token_count, outputTokenCount, output_token_count,
               eval_count, num_tokens_generated, tokens_predicted, num_output_tokens, predicted_n,
               generated_tokens, generated_token_count, totalOutputTextTokenCount,
               results_token_count, results_generated_token_count, response_tokens,
               generationTokens, nb_generated_tokens, tokens_generated, num_tokens, output_count,
               predictedTokensCount, predicted_tokens_count, CompletionTokens, text.completion_tokens]
  total: [total_tokens, totalTokens, totalTokenCount, total_token_count, token_count,
          totalTokensCount, total_tokens_count, TotalTokens, text.total_tokens]
  tool_prompt: [toolUsePromptTokenCount, tool_use_prompt_token_count, total_tool_use_tokens]
  cached: [in.cached_tokens, in.cache_read_tokens, in.cache_read, in.flex_cache_read,
           in.priority_cache_read, in.cacheReadTokens, in.cacheRead,
           in.cachedTokens, in.cache_read_input_tokens, cached_tokens, num_cached_tokens,
           prompt_cache_hit_tokens, cache_read_input_tokens, cacheReadInputTokens,
           cacheReadInputTokenCount, cachedInputTokens, cachedContentTokenCount,
           cached_content_token_count, total_cached_tokens, cached_prompt_text_tokens,
           cached_input_tokens, cache_read_tokens, cached_prompt_tokens, cacheReadTokens,
           tokens.cached_tokens, cachedTokens, cachedInputTokenCount, details.cached_tokens,
           details.cached_content_tokens, cachedReadTokens, cache_n]
  written: [in.cache_write_tokens, in.cache_creation_tokens, in.cache_creation, in.cacheWriteTokens,
            in.cacheWrite, in.cached_creation_tokens, in.cache_creation_input_tokens,
            cache_creation_input_tokens, cacheWriteInputTokens, cacheWriteInputTokenCount,
            cacheCreationInputTokens, cache_write_tokens, cache_creation_tokens,
            cache_write_input_tokens, cacheWriteTokens, cacheCreationTokens]
  reasoning: [out.reasoning_tokens, out.reasoning, out.flex_reasoning, out.priority_reasoning,
              out.reasoningTokens, out.thinking_tokens,
              reasoning_tokens, reasoningTokens, thoughtsTokenCount, thoughts_token_count,
              total_thought_tokens, tokens.reasoning_tokens, reasoning_output_tokens,
              details.reasoning_tokens, details.thoughts_tokens, reasoningTokenCount]
  billed_input: [billed.input_tokens, billed.inputTokens]
  billed_output: [billed.output_tokens, billed.outputTokens]
  billed_image: [billed.image_tokens, billed.imageTokens]
  written_5m: [written.ephemeral_5m_input_tokens, written.5m, in.ephemeral_5m_input_tokens]
  written_1h: [written.ephemeral_1h_input_tokens, written.1h, in.ephemeral_1h_input_tokens]
  input_audio: [in.audio_tokens, in.audio, in.audioTokens, in.AUDIO, in.4, audio_prompt_tokens]
  output_audio: [out.audio_tokens, out.audio, out.audioTokens, out.AUDIO, out.4, audio_completion_tokens]
  input_image: [in.image_tokens, in.image, in.imageTokens, in.IMAGE, in.2, prompt_image_tokens,
                tokens.image_tokens]
  output_image: [out.image_tokens, out.image, out.imageTokens, out.IMAGE, out.2]
  input_video: [in.video_tokens, in.video, in.videoTokens, in.VIDEO, in.3]
  output_video: [out.video_tokens, out.video, out.videoTokens, out.VIDEO, out.3]
  cached_audio: [cached.audio_tokens, cached.audio, cached.audioTokens, cached.AUDIO, cached.4]
  cached_image: [cached.image_tokens, cached.image, cached.imageTokens, cached.IMAGE, cached.2]
  cached_video: [cached.video_tokens, cached.video, cached.videoTokens, cached.VIDEO, cached.3]
  citation: [citation_tokens]
  web_search: [tools.web_search_requests, tools.web_search_calls, tools.webSearchRequests,
               tools.web_search, num_search_queries, web_search_requests]

dialects:
  - name: cohere
    any: [tokens.input_tokens, tokens.output_tokens, tokens.inputTokens, tokens.outputTokens,
          token_count.prompt_tokens, billed.input_tokens, billed.output_tokens,
          billed.inputTokens, billed.outputTokens, billed.image_tokens, billed.imageTokens]
  - name: xai_grpc
    any: [cached_prompt_text_tokens, prompt_text_tokens]
    reasoning: outside
  - name: perplexity_research
    any: [citation_tokens]
    with: [prompt_tokens, completion_tokens]
    reasoning: outside
  - name: openai_chat
    any: [prompt_tokens, completion_tokens, PromptTokens, CompletionTokens, text.prompt_tokens]
  - name: vercel_ai
    any: [promptTokens, completionTokens, cachedInputTokens, reasoningTokens, in.total, out.total,
          in.cacheReadTokens, in.cacheWriteTokens, out.reasoningTokens]
  - name: gemini
    any: [candidatesTokenCount, responseTokenCount, thoughtsTokenCount, promptTokenCount,
          candidates_token_count, response_token_count, thoughts_token_count, total_token_count,
          cached_content_token_count, toolUsePromptTokenCount]
    reasoning: outside
  - name: gemini_interactions
    any: [total_input_tokens, total_thought_tokens]
    reasoning: outside
  - name: bedrock_llama
    any: [prompt_token_count, generation_token_count]
  - name: bedrock_converse
    any: [inputTokens, outputTokens]
    cache: outside
  - name: vertex_palm
    any: [in.totalTokens, out.totalTokens]
  - name: bedrock_metrics
    any: [inputTokenCount, outputTokenCount]
    cache: outside
  - name: bedrock_titan
    any: [inputTextTokenCount, totalOutputTextTokenCount, results_token_count]
  - name: langchain
    any: [in.cache_read, in.cache_creation, in.flex, in.priority, in.audio, out.reasoning, out.audio]
  - name: realtime
    any: [input_token_details, output_token_details]
  - name: openai_responses
    any: [input_tokens_details]
    with: [input_tokens, output_tokens]
  - name: anthropic
    any: [cache_read_input_tokens, cache_creation_input_tokens, cache_creation, server_tool_use,
          out.thinking_tokens]
    cache: outside
    zero_cache: unknown
  - name: anthropic
    any: [input_tokens, output_tokens]
    without: [total_tokens, output_tokens_details, cache_read_tokens, cache_write_tokens]
    provider: [anthropic]
    cache: outside
    zero_cache: unknown
  - name: openai_responses
    any: [output_tokens_details, prompt_tokens_details, total_tokens]
    with: [input_tokens, output_tokens]
  - name: input_output
    any: [input_tokens, output_tokens, request_tokens, response_tokens]
  - name: ollama
    any: [prompt_eval_count, eval_count]
  - name: watsonx
    any: [results_input_token_count, results_generated_token_count]
  - name: aleph_alpha
    any: [num_tokens_prompt_total, num_tokens_generated]
  - name: vertex_predict
    any: [predictions_token_count]
  - name: tgi
    any: [generated_tokens, generated_token_count]
  - name: llama_cpp
    any: [tokens_evaluated, tokens_predicted, prompt_n, predicted_n]
    cache: outside
  - name: token_counts
    any: [input_token_count, output_token_count, num_input_tokens, num_output_tokens,
          nb_input_tokens, nb_generated_tokens, tokens_input, tokens_generated, input_count,
          output_count, promptTokensCount, predictedTokensCount, prompt_tokens_count,
          predicted_tokens_count]
  - name: total_only
    any: [total_tokens, totalTokens, totalTokenCount]
{% endset %}
{{ return(fromyaml(text)) }}
{% endmacro %}
