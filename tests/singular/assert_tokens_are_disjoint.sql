{#-
Uncached + cached + written = prompt, and reasoning is part of the completion. What a provider reports is
kept as it is, so that this warns: its money is that of the larger part.

Named exceptions, because the provider itself reports so:
  azure, openrouter, xai      cached input above the prompt (Grok)
  openrouter                  reasoning above the completion; its own cost bills the completion
-#}
{{ config(severity='warn') }}

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
    (
        prompt_tokens - coalesce(cached_input_tokens, 0) - coalesce(cache_write_tokens, 0) < 0
        and provider not in ('azure', 'openrouter', 'xai')
    )
    or (coalesce(reasoning_tokens, 0) > completion_tokens and provider != 'openrouter')
