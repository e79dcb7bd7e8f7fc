{#-
Uncached + cached + written = prompt, none negative; reasoning is part of the completion.

Named exceptions, because the provider itself reports so and its numbers are kept:
  azure, openrouter, xai      cached input above the prompt (Grok)
  openrouter                  reasoning above the completion; its own cost bills the completion
-#}
select
    id,
    provider,
    prompt_tokens,
    cached_input_tokens,
    cache_write_tokens,
    completion_tokens,
    reasoning_tokens
from {{ ref('llm_traces') }}
where
    least(
        prompt_tokens, completion_tokens, total_tokens, coalesce(cached_input_tokens, 0),
        coalesce(cache_write_tokens, 0), coalesce(reasoning_tokens, 0)
    ) < 0
    or (
        prompt_tokens - coalesce(cached_input_tokens, 0) - coalesce(cache_write_tokens, 0) < 0
        and provider not in ('azure', 'openrouter', 'xai')
    )
    or (coalesce(reasoning_tokens, 0) > completion_tokens and provider != 'openrouter')
