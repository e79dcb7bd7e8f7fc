{#- Names the rules by which responses are read: a hash of the SQL that reads them, so that it changes
    whenever a rule does and never else. -#}
{%- macro parser_version() -%}
    {{ return(local_md5(parse_responses('traces') | string)[:12] if execute else '') }}
{%- endmacro -%}
