{# one row per fruit; every physical option of the house at once #}
{{
    config(
        materialized='table',
        engine='MergeTree()',
        order_by='(id)',
        partition_by='id % 2',
        settings={'index_granularity': 1024},
        indexes=[{'name': 'by_name', 'definition': 'name type bloom_filter granularity 1'}],
        projections=[{'name': 'by_name_order', 'query': 'select name, id order by name'}],
    )
}}
select
    id,
    cast(name as LowCardinality(String)) as name,
    price
from {{ ref('fruits') }}
