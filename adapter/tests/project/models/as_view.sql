{# one row per fruit above the first #}
select
    id,
    name
from {{ ref('as_table') }}
where id > 1
