{# No count of tokens is below zero, whatever a response says. #}
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
