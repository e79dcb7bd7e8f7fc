{#
llm_price_matches follows provider_aliases: its comment says by which it was made, as the seed's table
says which it holds (macros/landing/seed_tables.sql).
-#}

{#- Whether other aliases are loaded than those that all pairs were matched by. -#}
{%- macro has_other_aliases() -%}
    {%- set comments = _alias_comments() if execute else {} -%}
    {{ return(comments.get(this.identifier, '') != comments.get('provider_aliases', '')) }}
{%- endmacro -%}

{#- pre_hook: all pairs are matched anew; `--empty` matches none. -#}
{%- macro forget_matches_by_other_aliases() -%}
    {%- if execute and not flags.EMPTY and is_incremental() and has_other_aliases() -%}
        truncate table {{ this }}{{ on_cluster() }}
    {%- endif -%}
{%- endmacro -%}

{#- post_hook: they are. -#}
{%- macro note_aliases() -%}
    {%- if execute and not flags.EMPTY and has_other_aliases() -%}
        alter table {{ this }}{{ on_cluster() }} modify comment {{ sql_text(_alias_comments()['provider_aliases']) }}
    {%- endif -%}
{%- endmacro -%}

{%- macro _alias_comments() -%}
    {{ return(dict(run_query(
        'select name, comment from system.tables where database = ' ~ sql_text(this.schema)
        ~ " and name in ('provider_aliases', " ~ sql_text(this.identifier) ~ ')'
    ).rows | map('list'))) }}
{%- endmacro -%}
