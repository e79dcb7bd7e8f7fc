{#- A time as text in UTC, or null. Text without a zone is UTC; ISO 8601, RFC 2822 and Unix seconds are read. -#}
{%- macro utc_time(text) -%}
parseDateTime64BestEffortOrNull({{ text }}, 6, 'UTC')
{%- endmacro %}
