{# one row per fruit, as its last run saw it #}
{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key='id',
        order_by='id',
    )
}}
select
    id,
    '{{ var("mark", "first") }}' as mark
from {{ ref('fruits') }}
{% if is_incremental() %}
where id <= 2
{% endif %}
