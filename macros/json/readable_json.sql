{#- The text itself where the engine can read it as JSON, else the copy of `repaired_json`. -#}
{%- macro readable_json(text) -%}
if(isValidJSON({{ text }}), {{ text }}, {{ repaired_json(text) }})
{%- endmacro %}


{#-
A copy of a text that is not valid JSON, for reading only, without what Python's json writes and the
engine refuses. In strings half a pair of surrogates becomes U+FFFD and its own four digits, and nothing
else changes: no name may become that of another. Outside of them NaN and Infinity become null,
exponents of three digits and more 99, and of the digits of a number 200 stay.
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
