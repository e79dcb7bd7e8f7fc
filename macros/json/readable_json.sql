{#- The text itself where the engine can read it as JSON; else a copy, for reading only, without what
    Python's json writes and the engine refuses: lone surrogate escapes are dropped (the first branch
    of the pattern keeps escaped backslashes and whole pairs), exponents of three digits and more become 99. -#}
{%- macro readable_json(text) -%}
if(
            isValidJSON({{ text }}),
            {{ text }},
            replaceRegexpAll(
                replaceRegexpAll(
                    {{ text }},
                    '(\\\\\\\\|\\\\u[dD][89abAB][0-9a-fA-F]{2}\\\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\\\u[dD][89a-fA-F][0-9a-fA-F]{2}',
                    '\\1'
                ),
                '([0-9][eE][+]?)[0-9]{3,}',
                '\\199'
            )
        )
{%- endmacro %}
