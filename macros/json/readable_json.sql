{#- The text itself where the engine can read it as JSON; else a copy, for reading only, without what
    Python's json writes and the engine refuses. In strings half a pair of surrogates becomes U+FFFD, so
    that no name becomes that of another; outside of them exponents of three digits and more become 99,
    and of a number's digits 200 stay. -#}
{%- macro readable_json(text) -%}
if(
            isValidJSON({{ text }}),
            {{ text }},
            arrayStringConcat(arrayMap(
                piece -> if(
                    startsWith(piece, '"'),
                    arrayStringConcat(arrayMap(
                        part -> if(match(part, '^\\\\u[dD][89a-fA-F]..$'), '\\ufffd', part),
                        extractAll(
                            piece,
                            '\\\\u[dD][89abAB]..\\\\u[dD][c-fC-F]..|\\\\u[dD][89a-fA-F]..|\\\\.|[^\\\\]+'
                        )
                    )),
                    replaceRegexpAll(
                        replaceRegexpAll(piece, '([0-9][eE][+]?)[0-9]{3,}', '\\199'),
                        '([0-9]{200})[0-9]+',
                        '\\1'
                    )
                ),
                extractAll({{ text }}, '"(?:[^"\\\\]|\\\\.)*"|[^"]+')
            ))
        )
{%- endmacro %}
