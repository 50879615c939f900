-- What pgcascade knows of a consumer beyond PgQ's tables, above all whom it belongs to.
--
-- Promised: only members of the role that owns a consumer, and of pgq_admin, open, read, retry, finish, move or end its
-- batches. The functions that act for a consumer ask pgcascade.check_consumer(); nothing else decides. The setting
-- pgcascade.consumer_ownership = off lets every reader act for every consumer, as PgQ does.
-- Who acts is the role of the session, as SET ROLE left it: all those functions run as the extension's owner, and what
-- SECURITY DEFINER functions of others are around them cannot be seen from inside. See docs/security.md.

-- One row per subscription that was made here; one without a row, or without owner, belongs to nobody yet. No reference
-- to pgq.subscription, whose rows are written in bulk. A name alone would follow no rename, and would pass to whoever gets
-- the name of a dropped role next; an oid alone means nothing in another cluster. So both are stored, and where the oid
-- is from. Owner public: everybody.
create table pgcascade.consumer_config (
    sub_queue       integer     not null,
    sub_consumer    integer     not null,
    owner           name,
    owner_oid       oid,
    owner_system    bigint,     -- system identifier of the cluster that owner_oid belongs to
    max_retries     integer,    -- how often an event is retried, see dead_letter.sql; null: no limit

    constraint consumer_config_pkey primary key (sub_queue, sub_consumer),
    constraint consumer_config_queue_fkey foreign key (sub_queue) references pgq.queue (queue_id) on delete cascade,
    constraint consumer_config_max_retries_check check (max_retries >= 0)
);

comment on table pgcascade.consumer_config is 'owners of consumers, and how often they retry';
select pg_catalog.pg_extension_config_dump('pgcascade.consumer_config', '');

-- pgcascade.caller()
--     The role that the session acts as: that of SET ROLE, else the one it logged in as.
create function pgcascade.caller() returns name
language sql stable
return case when current_setting('role') = 'none' then session_user else current_setting('role')::name end;

-- pgcascade.owner_role(3)
--     The role that is meant by an owner as stored; null if there is no such role any more. In the cluster where it was
--     stored the oid counts, so a renamed role stays the owner; elsewhere (a dump was restored) the name does.
create function pgcascade.owner_role(i_owner name, i_oid oid, i_system bigint) returns oid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_get_userbyid(i_oid) = i_owner then
        return i_oid;
    elsif i_system = (select c.system_identifier from pg_control_system() c) then
        return (select r.oid from pg_roles r where r.oid = i_oid);
    end if;
    return (select r.oid from pg_roles r where r.rolname = i_owner);
end
$$;

-- pgcascade.check_consumer(2)
--     Refuses a caller who may not act for a consumer. Returns whether the consumer has an owner; one without is open to
--     everybody until somebody opens a batch of it or moves it. A subconsumer belongs to the owner of its main consumer.
--     Errors: insufficient_privilege. Locks and writes nothing.
create function pgcascade.check_consumer(i_queue_id integer, i_consumer_id integer) returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    me constant name := pgcascade.caller();
    conf pgcascade.consumer_config;
    role oid;
begin
    select c.* into conf from pgcascade.consumer_config c where c.sub_queue = i_queue_id and c.sub_consumer = i_consumer_id;
    if conf.owner is null then
        select c.* into conf
          from pgcascade.consumer_config c
         where c.sub_queue = i_queue_id
           and c.sub_consumer = pgcascade.main_consumer(i_queue_id, i_consumer_id);
    end if;
    if conf.owner is null then
        return false;
    elsif conf.owner = 'public' or conf.owner = me and pg_get_userbyid(conf.owner_oid) = me then
        return true;
    end if;

    role := pgcascade.owner_role(conf.owner, conf.owner_oid, conf.owner_system);
    if pg_has_role(me, role, 'member') or pg_has_role(me, 'pgq_admin', 'member')
       or pgcascade.setting('pgcascade.consumer_ownership') = 'off'
    then
        return true;
    end if;
    raise exception using errcode = 'insufficient_privilege',
        message = format('consumer %s of queue %s belongs to role %I',
                         (select co_name from pgq.consumer where co_id = i_consumer_id),
                         (select queue_name from pgq.queue where queue_id = i_queue_id),
                         coalesce(pg_get_userbyid(role), conf.owner)),
        detail = case when role is null then 'There is no such role any more.'
                      else format('Role %I is not a member of it.', me) end,
        hint = case when role is null then 'Have' else 'Act as a member of that role, or have' end
               || ' a member of pgq_admin change the owner with pgcascade.set_consumer_owner().';
end
$$;

-- pgcascade.check_batch(1)
--     The same for the consumer that has a batch open; a batch that nobody has open is left to the caller.
create function pgcascade.check_batch(i_batch_id bigint) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgcascade.check_consumer(s.sub_queue, s.sub_consumer) from pgq.subscription s where s.sub_batch = i_batch_id;
end
$$;

-- pgcascade.store_owner(4)
--     Store the owner of a consumer: a role, public, or null for nobody yet. i_if_none: only if it has none.
--     Writes pgcascade.consumer_config.
create function pgcascade.store_owner(i_queue_id integer, i_consumer_id integer, i_owner name, i_if_none boolean)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into pgcascade.consumer_config as c (sub_queue, sub_consumer, owner, owner_oid, owner_system)
    values (i_queue_id, i_consumer_id, i_owner, (select r.oid from pg_roles r where r.rolname = i_owner),
            (select s.system_identifier from pg_control_system() s))
    on conflict (sub_queue, sub_consumer)
        do update set owner = excluded.owner, owner_oid = excluded.owner_oid, owner_system = excluded.owner_system
            where c.owner is null or not i_if_none;
end
$$;

-- pgcascade.set_consumer_owner(3)
--     Give a consumer to a role; to public: everybody who may read queues may act for it; to null: whoever opens its next
--     batch owns it. For administrators.
--     Errors: not subscribed; no such role. Writes pgcascade.consumer_config. Locks the subscription's row, as opening a
--     batch does: a batch that is being opened is the old owner's.
create function pgcascade.set_consumer_owner(i_queue_name text, i_consumer_name text, i_owner name) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    sub record;
begin
    select s.sub_queue, s.sub_consumer into sub
      from pgq.subscription s
      join pgq.queue q on q.queue_id = s.sub_queue
      join pgq.consumer c on c.co_id = s.sub_consumer
     where q.queue_name = i_queue_name and c.co_name = i_consumer_name
       for update of s;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('Not subscriber to queue: %s/%s',
                             coalesce(i_queue_name, 'NULL'), coalesce(i_consumer_name, 'NULL')),
            hint = 'Subscribe with pgq.register_consumer(); pgq.get_consumer_info() lists the consumers.';
    elsif i_owner <> 'public' and not exists (select from pg_roles r where r.rolname = i_owner) then
        raise exception using errcode = 'undefined_object', message = format('role "%s" does not exist', i_owner),
            hint = 'Name a role of this cluster, or public for everybody who may read queues.';
    end if;
    perform pgcascade.store_owner(sub.sub_queue, sub.sub_consumer, i_owner, false);
end
$$;

comment on function pgcascade.caller() is 'the role that the session acts as';
comment on function pgcascade.owner_role(name, oid, bigint) is 'role that a stored owner of a consumer means; null if it is gone';
comment on function pgcascade.check_consumer(integer, integer) is
    'raise an error if the caller may not act for a consumer; whether it has an owner';
comment on function pgcascade.check_batch(bigint) is 'raise an error if the caller may not act for the consumer of a batch';
comment on function pgcascade.store_owner(integer, integer, name, boolean) is 'store the owner of a consumer';
comment on function pgcascade.set_consumer_owner(text, text, name) is
    'give a consumer to a role, to public (everybody), or to nobody (null)';
