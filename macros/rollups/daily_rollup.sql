{#-
How a roll-up by day follows llm_traces. Each row of such a model carries

    day_fingerprint   the state of the traces that its day was built from (int_days__fingerprinted)
    day_rows          how many rows its day has

and a run builds again the days whose fingerprint is another, whose rows are not all there (a first
run was killed), or that have no traces any more. The model is partitioned by month and written with
insert_overwrite: a month in which a day changed is put together from the days that did not, copied,
and those that did, built from llm_traces; then the partition is replaced, which is one step. A run
that is killed before it leaves the old month, and the next run finds the same days changed.

    config(
        materialized='incremental', incremental_strategy='insert_overwrite',
        partition_by='toYYYYMM(usage_date)', pre_hook="{{ drop_empty_months('UTC') }}",
    )
    with
    {{ changed_days('UTC') }},
    traces as (
        select … from {{ ref('int_traces__rebilled') }}
        where {{ in_changed_days('UTC') }}
    ),
    …
    {{ rolled_up('my_model', 'grouped') }}      grouped: its columns but the last two
-#}

{#- The time zone in which the days of reports are cut. -#}
{%- macro reporting_time_zone() -%}
    {%- set time_zone = var('reporting_time_zone', 'UTC') -%}
    {%- if time_zone | lower | list | reject('in', 'abcdefghijklmnopqrstuvwxyz0123456789_+/-') | list -%}
        {{ exceptions.raise_compiler_error(
            'reporting_time_zone is ' ~ time_zone ~ ': it has to be a name such as Europe/Berlin.'
        ) }}
    {%- endif -%}
    {{ return(time_zone) }}
{%- endmacro -%}

{#- CTEs: the days that have traces, and of them those to build. -#}
{%- macro changed_days(time_zone) -%}
days as (
    select * from {{ ref('int_days__fingerprinted') }}
    where time_zone = '{{ time_zone }}'
),

changed_days as (
    select * from days
    {%- if is_incremental() %}
    where (usage_date, fingerprint) not in (
        select
            usage_date,
            any(day_fingerprint)
        from {{ this }}
        group by usage_date
        having
            count() = any(day_rows)
            and uniqExact(day_fingerprint) = 1
    )
    {%- endif %}
)
{%- endmacro -%}

{#- A condition on created_at: the first line is for the primary key and the partitions. -#}
{%- macro in_changed_days(time_zone) -%}
created_at >= (select min(first_created_at) from changed_days)
        and created_at <= (select max(last_created_at) from changed_days)
        and toDate32(created_at, '{{ time_zone }}') in (select usage_date from changed_days)
{%- endmacro -%}

{#- The CTEs and the select that end a roll-up: the days built, and with them the unchanged days of
    their months. -#}
{%- macro rolled_up(model_name, grouped) -%}
{#- A unit test has no graph to take the contract from, and nothing to union with. -#}
{%- set columns = '*' -%}
{%- if execute and graph.nodes is defined -%}
    {%- set columns = contract_columns(model_name) -%}
{%- endif -%}
built as (
    select
        {{ grouped }}.*,
        changed_days.fingerprint as day_fingerprint,
        (count() over (partition by {{ grouped }}.usage_date))::UInt64 as day_rows
    from {{ grouped }}
    inner join changed_days on {{ grouped }}.usage_date = changed_days.usage_date
),
{%- if is_incremental() %}

changed_months as (
    select toYYYYMM(usage_date) as usage_month from changed_days
    union distinct
    select toYYYYMM(usage_date) as usage_month from {{ this }}
    where usage_date not in (select usage_date from days)
),

kept as (
    select * from {{ this }}
    where
        toYYYYMM(usage_date) in (select usage_month from changed_months)
        and usage_date in (select usage_date from days)
        and usage_date not in (select usage_date from changed_days)
),
{%- endif %}

final as (
    select
        {{ columns }}
    from built
    {%- if is_incremental() %}

    union all

    select
        {{ columns }}
    from kept
    {%- endif %}
)

select * from final
{%- endmacro -%}

{#- Months of the model in which no trace is left: another time zone, or traces that were erased. There
    is nothing to replace them with. A model that leaves traces out says what it is made of, with a
    condition: of its changed months, those are empty that have none of these. -#}
{%- macro drop_empty_months(time_zone, made_of=none) -%}
    {%- if execute and run_query(
        "select count() > 0 and countIf(time_zone = '" ~ time_zone ~ "') = 0 from " ~ ref('int_days__fingerprinted')
    ).rows[0][0] -%}
        {{ exceptions.raise_compiler_error(
            this.identifier ~ ' is made of days of ' ~ time_zone ~ ', and there are none yet: run dbt run, or '
            ~ 'dbt run --select int_days__fingerprinted+'
        ) }}
    {%- endif -%}
    {%- if execute and is_incremental() -%}
        {%- set current = 'select usage_date, fingerprint from ' ~ ref('int_days__fingerprinted') ~ " where time_zone = '" ~ time_zone ~ "'" -%}
        {%- set changed = 'select toYYYYMM(usage_date) from ' ~ this ~ ' where (usage_date, day_fingerprint) not in (' ~ current ~ ')' -%}
        {%- set months = run_query(
            "select distinct toYYYYMM(usage_date) as usage_month from " ~ this
            ~ " where toYYYYMM(usage_date) not in (select toYYYYMM(usage_date) from "
            ~ ref('int_days__fingerprinted') ~ " where time_zone = '" ~ time_zone ~ "')"
            ~ (' or (usage_month in (' ~ changed ~ ') and usage_month not in (select toYYYYMM(created_at) from ' ~ made_of
                ~ ' and toYYYYMM(created_at) in (' ~ changed ~ ')))' if made_of else '')
        ) -%}
        {%- if months.rows | length -%}
            alter table {{ this }} {{ on_cluster_clause(this) }}
            {%- for month in months.rows %}
            drop partition {{ month[0] }}{{ ',' if not loop.last }}
            {%- endfor %}
        {%- endif -%}
    {%- endif -%}
{%- endmacro -%}
