{#- The four forms under which a model's name is looked for, in order: as it is, with a compact date
    written out (-20251211 as -2025-12-11), without the path of a resource before it
    (publishers/google/models/, arn:...:foundation-model/), and both. -#}
{%- macro model_name_forms(name) -%}
[
                    {{ name }},
                    {{ with_dashed_date(name) }},
                    {{ without_resource_path(name) }},
                    {{ with_dashed_date(without_resource_path(name)) }}
                ]
{%- endmacro -%}

{%- macro with_dashed_date(name) -%}
replaceRegexpAll({{ name }}, '-(20[0-9]{2})(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])(-|:|$)', '-\\1-\\2-\\3\\4')
{%- endmacro -%}

{%- macro without_resource_path(name) -%}
replaceRegexpOne({{ name }}, '^(?:.*/)?(?:models|foundation-model|inference-profile|application-inference-profile)/', '')
{%- endmacro -%}

{#- Whose a model is, where its name says so: `maker/model`. -#}
{%- macro model_maker(name) -%}
extract({{ name }}, '^([^/]+)/[^/]+$')
{%- endmacro -%}

{#- Whether a name that was asked for is the answering one with more to it, and so the same model: a
    region, a cloud or a path before it, a date, a release, a version or a variant (-20251001, -0613,
    -v1, :0, :free, @..., [1m]) behind it. Any other name that holds it is another model's, often a
    smaller one's: gpt-5-mini answered by gpt-5. xAI sold Grok 3 at two speeds, and answers with the
    model's name at both. Read from the last place, and without a pattern made of names: they may
    hold anything. -#}
{%- macro is_fuller_name(requested, answering) -%}
{%- set behind -%}
position(reverse({{ requested }}), reverse({{ answering }}))
{%- endset -%}
{%- set tail -%}
substring({{ requested }}, length({{ requested }}) - {{ behind }} + 2)
{%- endset -%}
{%- set head -%}
substring({{ requested }}, 1, greatest(length({{ requested }}) - length({{ answering }}) - {{ behind }} + 1, 0))
{%- endset -%}
{{ behind }} > 0
            and match({{ head }}, '(^|[./:])$')
            and (
                match(
                    {{ tail }},
                    '^(-(20[0-9]{2}-?[0-9]{2}-?[0-9]{2}|[0-9]{3,4}))?(-v[0-9]+)?([:@\\[].*)?$'
                )
                or (match({{ tail }}, '^-fast(-beta|-latest)?$') and match({{ answering }}, '(^|/)grok-3(-mini)?$'))
            )
{%- endmacro -%}
