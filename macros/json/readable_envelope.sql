{#- An envelope as the engine can read it: itself where it is JSON to it, else the copy of `repaired_json`. -#}
{%- macro readable_envelope(text) -%}
{%- set named = names_as_text(text) -%}
if(isValidJSON({{ named }}), {{ named }}, {{ repaired_json(named) }})
{%- endmacro %}


{#-
A copy of an envelope in which a name that is a number is a string of the number's bytes, where the
engine would read another one: a fraction, an exponent, 20 digits and more, -0. Names are, at any depth, the
values of keys that end in `id` or `type`, of `cost_source`, and of keys with escapes.
-#}
{%- macro names_as_text(text) -%}
replaceRegexpAll(
            {{ text }},
            '("(?:\\w*(?:id|type)|cost_source|[^"\\\\]*(?:\\\\.[^"\\\\]*)+)"\\s*:\\s*)(-?(?:[0-9]+[.eE][-+.0-9eE]*|[0-9]{20,})|-0)',
            '\\1"\\2"'
        )
{%- endmacro %}


{#-
A copy of a text that is not valid JSON, for reading only, without what Python's json writes and the
engine refuses. In strings half a pair of surrogates becomes U+FFFD and its own four digits, and nothing
else changes: no name may become that of another (but of one that has U+FFFD and such digits itself).
Outside of them NaN and Infinity become null, exponents of three digits and more 99, and of the digits of
a number 200 stay.
-#}
{%- macro repaired_json(text) -%}
arrayStringConcat(arrayMap(
            piece -> if(
                startsWith(piece, '"'),
                arrayStringConcat(arrayMap(
                    part -> if(match(part, '^\\\\u[dD][89a-fA-F]..$'), concat('\\ufffd', lower(substring(part, 3))), part),
                    extractAll(
                        piece,
                        '(?:[^\\\\]|\\\\[^u])+|\\\\u[dD][89abAB]..\\\\u[dD][c-fC-F]..|\\\\u[dD][89a-fA-F]..|\\\\u?'
                    )
                )),
                replaceRegexpAll(
                    replaceRegexpAll(
                        replaceRegexpAll(piece, '-?\\b(?:NaN|Infinity)\\b', 'null'),
                        '([0-9][eE][+-]?)[0-9]{3,}',
                        '\\199'
                    ),
                    '([0-9]{200})[0-9]+',
                    '\\1'
                )
            ),
            extractAll({{ text }}, '"(?:[^"\\\\]|\\\\.)*(?:"|\\\\?$)|[^"]+')
        ))
{%- endmacro %}
