{# one row per pending trace, with what its response says: tokens, errors, cost, finish #}

{{ parse_responses(ref('int_traces__pending')) }}
