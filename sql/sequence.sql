-- Sequences by name, and quoting of names: what the queue and its clients use to read and move sequences.
--
-- A sequence is not transactional, so "read it, then set it" races with everybody who draws from it. The rule kept
-- here: a sequence never moves backwards.

-- pgq.quote_fqname(1)
--     The name of a table or sequence, quoted for use in SQL; a name without schema is taken to be in public.
--     The first dot ends the schema. Null gives null.
create function pgq.quote_fqname(i_name text) returns text
language plpgsql immutable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    dot constant integer := position('.' in i_name);
begin
    if dot = 0 then
        return 'public.' || quote_ident(i_name);
    end if;
    return quote_ident(substr(i_name, 1, dot - 1)) || '.' || quote_ident(substr(i_name, dot + 1));
end
$$;

-- pgq.seq_getval(1)
--     last_value of a sequence, as it stands (1 for a sequence that was never drawn from). Draws nothing.
--     The caller must be allowed to read the sequence; those of queues are readable by everybody.
create function pgq.seq_getval(i_seq_name text) returns bigint
language plpgsql volatile strict
set search_path = pg_catalog, pg_temp
as $$
declare
    result bigint;
begin
    execute 'select last_value from ' || pgq.quote_fqname(i_seq_name) into strict result;
    return result;
end
$$;

-- pgq.seq_setval(2)
--     Moves a sequence forward to i_new_value, never back. Returns where it stands then.
--     The race: somebody may draw past i_new_value between our look and our setval, which would then move it back and
--     issue the same values twice. A short way is therefore gone by drawing, which cannot overshoot; a long one cannot
--     be overtaken between two statements.
create function pgq.seq_setval(i_seq_name text, i_new_value int8) returns bigint
language plpgsql volatile strict
set search_path = pg_catalog, pg_temp
as $$
declare
    short_way constant bigint := 1000;
    seq constant regclass := pgq.quote_fqname(i_seq_name);
    cur bigint := pgq.seq_getval(i_seq_name);
begin
    if i_new_value > cur
       and i_new_value - cur <= short_way
       and (select seqincrement = 1 and seqcache = 1 from pg_sequence where seqrelid = seq)
    then
        while cur < i_new_value loop
            cur := nextval(seq);
        end loop;
    elsif i_new_value > cur then
        cur := setval(seq, i_new_value);
    end if;
    return cur;
end
$$;

-- pgcascade.unused_id(1)
--     The next value of a sequence of schema pgq that its own column does not have yet.
--     pg_dump saves the rows of our tables but not where their sequences stand: those of a restored database begin again
--     at 1. For sub_id, which is not unique, a second use would make two subscriptions one.
create function pgcascade.unused_id(i_seq regclass) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    look constant text := (
        select format('select exists (select from %s where %I = $1)', d.refobjid::regclass, a.attname)
          from pg_depend d
          join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
         where d.classid = 'pg_class'::regclass and d.objid = i_seq and d.deptype = 'a');
    id integer;
    used boolean;
begin
    loop
        id := nextval(i_seq);
        execute look into used using id;
        exit when not used;
    end loop;
    return id;
end
$$;

comment on function pgcascade.unused_id(regclass) is 'next value of a sequence that its table does not have yet';
comment on function pgq.quote_fqname(text) is 'quote a table or sequence name for SQL; without schema it is in public';
comment on function pgq.seq_getval(text) is 'last value of a sequence, without drawing from it';
comment on function pgq.seq_setval(text, bigint) is 'move a sequence forward to a value; never moves it back';
