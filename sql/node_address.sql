-- Two addresses of a node: pgq_node.node_location has the one for programs, which replay uses; the one for administrators, if there
-- is one, is here, and the commands use it. Both travel with the same event (pgq.location-info; this one is its ev_extra4).
--
-- An address for administrators belongs to the address for programs that it was given beside. When that one changes, the node may
-- have moved, and what is known here may lead to where it was: so it is forgotten, whoever changes it and wherever.

create table pgcascade.node_admin_location (
    queue_name      text        not null,
    node_name       text        not null,
    location        text        not null,

    constraint node_admin_location_pkey primary key (queue_name, node_name)
);

comment on table pgcascade.node_admin_location is 'where administrators reach nodes, if not where programs do';

select pg_catalog.pg_extension_config_dump('pgcascade.node_admin_location', '');

-- pgcascade.forget_admin_location()
--     Trigger on pgq_node.node_location: a node that may have moved, or is forgotten. Writes node_admin_location.
create function pgcascade.forget_admin_location() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    delete from pgcascade.node_admin_location a where a.queue_name = old.queue_name and a.node_name = old.node_name;
    return null;
end
$$;

create trigger pgcascade_moved
    after update on pgq_node.node_location
    for each row when (old.node_location is distinct from new.node_location)
    execute function pgcascade.forget_admin_location();

create trigger pgcascade_forgotten
    after delete on pgq_node.node_location
    for each row execute function pgcascade.forget_admin_location();

-- ALWAYS: replay writes what the root tells with session_replication_role = replica.
alter table pgq_node.node_location enable always trigger pgcascade_moved;
alter table pgq_node.node_location enable always trigger pgcascade_forgotten;

-- pgcascade.set_admin_location(3)
--     Say where administrators reach a node that is known here; null: where programs do. Returns whether that is new; then, on
--     the root, the other nodes are told.
--     Errors: no such node. Writes node_admin_location; an event on the root.
create function pgcascade.set_admin_location(i_queue_name text, i_node_name text, i_location text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    node pgq_node.node_location;
begin
    select * into node from pgq_node.node_location
     where queue_name = i_queue_name and node_name = i_node_name for update;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('this database knows no node %s of queue %s', coalesce(quote_literal(i_node_name), 'NULL'),
                             coalesce(quote_literal(i_queue_name), 'NULL')),
            hint = 'pgq_node.node_location lists those that it knows.';
    end if;
    if i_location is null then
        delete from pgcascade.node_admin_location where queue_name = i_queue_name and node_name = i_node_name;
    else
        insert into pgcascade.node_admin_location as a (queue_name, node_name, location)
        values (i_queue_name, i_node_name, i_location)
        on conflict (queue_name, node_name) do update set location = excluded.location
         where a.location <> excluded.location;
    end if;
    if not found then
        return false;
    end if;
    if exists (select from pgq_node.node_info where queue_name = i_queue_name and node_type = 'root') then
        perform pgq_node.register_location(i_queue_name, i_node_name, null, node.dead);
    end if;
    return true;
end
$$;

comment on function pgcascade.forget_admin_location() is 'trigger on pgq_node.node_location: a node that may have moved';
comment on function pgcascade.set_admin_location(text, text, text) is 'say where administrators reach a node';
