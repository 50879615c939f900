-- Which of the tables that are to be emptied by one statement are referred to by a foreign key of another table, and whether that
-- one is emptied with them. What is true of a partition is so of its table.
-- $1: their names, quoted; what comes are places in it, from 0. `by` is null: by one that is not among them
with recursive below(place, oid) as (
       select n.place - 1, pg_catalog.to_regclass(n.name)::oid from pg_catalog.unnest($1::text[]) with ordinality n(name, place)
        union
       select b.place, h.inhrelid
         from below b
         join pg_catalog.pg_class c on c.oid = b.oid and c.relkind = 'p'
         join pg_catalog.pg_inherits h on h.inhparent = b.oid)
select distinct b.place, other.place as by
  from below b
  join pg_catalog.pg_constraint c on c.contype = 'f' and c.confrelid = b.oid
  left join below other on other.oid = c.conrelid
 where other.place is distinct from b.place
