{#- Whether a price's hours and weekdays hold at created_at. Windows in UTC are compared with
    utc_second and utc_weekday; other zones, seldom, with the local time. The day of a window that
    spans midnight is the day of the moment itself. -#}
{%- macro rate_window_holds(rate) -%}
(
    (
        {{ rate }}.window_start = {{ rate }}.window_end
        and empty({{ rate }}.weekdays)
    )
    or if(
        {{ rate }}.time_zone = 'UTC',
        {{ window_contains(rate, 'utc_second', 'utc_weekday') }},
        {{ window_contains(
            rate,
            seconds_of_day("formatDateTime(created_at, '%H:%i:%S', " ~ rate ~ ".time_zone)"),
            "toUInt8(formatDateTime(created_at, '%u', " ~ rate ~ ".time_zone))",
        ) }}
    )
)
{%- endmacro -%}

{%- macro window_contains(rate, second, weekday) -%}
(
    (empty({{ rate }}.weekdays) or has({{ rate }}.weekdays, {{ weekday }}))
    and if(
        {{ rate }}.window_start <= {{ rate }}.window_end,
        {{ rate }}.window_start = {{ rate }}.window_end
        or ({{ rate }}.window_start <= {{ second }} and {{ second }} < {{ rate }}.window_end),
        {{ rate }}.window_start <= {{ second }} or {{ second }} < {{ rate }}.window_end
    )
)
{%- endmacro -%}
