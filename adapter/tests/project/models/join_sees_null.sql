{# one row per fruit with its missing partner #}
select
    fruits.id,
    partner.name as partner
from {{ ref('fruits') }} as fruits
left join (select toUInt64(1) as id, 'plum' as name) as partner on partner.id = fruits.id
