{#-
A total is never below its parts. It may be above: some providers report a total with a rest that
nobody itemises, and that rest is kept in the total only.
-#}
select
    id,
    provider,
    prompt_tokens,
    completion_tokens,
    total_tokens
from {{ ref('llm_traces') }}
where total_tokens < prompt_tokens + completion_tokens
