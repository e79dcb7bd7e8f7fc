{#- A price as it is carried in arrays to the traces, and its type. -#}
{%- macro price_tuple(layer, precedence) -%}
(
    {{ layer }}, {{ precedence }}, tier_start, unit, unit_price_usd, is_tier_start_inclusive,
    valid_from, valid_to, {{ seconds_of_day('window_start') }}, {{ seconds_of_day('window_end') }},
    weekdays, time_zone, price_id
)::{{ price_tuple_type() }}
{%- endmacro -%}

{%- macro price_tuple_type() -%}
Tuple(layer UInt8, precedence UInt32, tier_start UInt64, unit String, unit_price_usd Decimal(38, 24), is_tier_start_inclusive Bool, valid_from DateTime64(6, 'UTC'), valid_to DateTime64(6, 'UTC'), window_start UInt32, window_end UInt32, weekdays Array(UInt8), time_zone String, price_id String)
{%- endmacro -%}

{#- HH:MM:SS as seconds since midnight; empty is 0. A window from 0 to 0 is no window. -#}
{%- macro seconds_of_day(text) -%}
toUInt32(
    if(
        {{ text }} = '',
        0,
        toUInt32OrZero(substring({{ text }}, 1, 2)) * 3600
        + toUInt32OrZero(substring({{ text }}, 4, 2)) * 60
        + toUInt32OrZero(substring({{ text }}, 7, 2))
    )
)
{%- endmacro -%}
