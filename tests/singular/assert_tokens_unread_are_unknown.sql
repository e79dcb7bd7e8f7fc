{#- A trace whose usage was not reported has no counts, and its status says why. -#}
select
    id,
    provider,
    usage_status
from {{ ref('llm_traces') }}
where
    usage_status not in (
        'reported', 'absent', 'null', 'empty', 'not_applicable', 'other_units', 'unrecognised', 'unparsable'
    )
    or (
        usage_status != 'reported'
        and (
            total_tokens != 0
            or coalesce(cached_input_tokens, cache_write_tokens, reasoning_tokens) is not null
        )
    )
