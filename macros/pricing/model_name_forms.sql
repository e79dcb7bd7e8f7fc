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
