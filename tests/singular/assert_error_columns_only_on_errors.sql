{# Error columns are filled exactly when a trace is an error. #}

select
    id,
    provider,
    is_error,
    error_type,
    error_class
from {{ ref('llm_traces') }}
where
    is_error != (error_class is not null)
    or (not is_error and coalesce(error_type, error_message) is not null)
    or lengthUTF8(coalesce(error_message, '')) > 1000
    or coalesce(error_class, 'unknown') not in (
        'rate_limit', 'quota', 'authentication', 'permission', 'not_found', 'invalid_request',
        'context_overflow', 'content_filter', 'timeout', 'overloaded', 'server_error', 'cancelled',
        'unknown'
    )
